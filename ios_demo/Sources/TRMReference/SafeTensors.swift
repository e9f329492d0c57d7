import Foundation
import TRMCore

/// Named tensors of a file that holds its own hash; nothing of it is believed before it is checked.
///
/// Format: huggingface.co/docs/safetensors. The data must follow each other without gaps.
struct SafeTensors {
    enum Kind: String {
        case f32 = "F32"
        case f16 = "F16"
        case bf16 = "BF16"
        case u32 = "U32"

        var bytes: Int { self == .f32 || self == .u32 ? 4 : 2 }
    }

    struct Entry {
        let kind: Kind
        let shape: [Int]
        let range: Range<Int>
    }

    let entries: [String: Entry]
    let metadata: [String: String]
    private let data: [UInt8]

    private static let headerBytes = 1 << 22  // the header of 30,000 tensors

    /// - Parameters:
    ///   - file: of the model folder.
    ///   - numbers: how many numbers the tensors must hold together; checked before any is read.
    init(_ file: URL, numbers: Int128) throws {
        let size = try ModelFolder.size(of: file)
        let handle = try FileHandle(forReadingFrom: file)
        defer { try? handle.close() }
        let start = [UInt8](try handle.read(upToCount: 8) ?? Data())
        let length = start.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard start.count == 8, length <= UInt64(min(Self.headerBytes, max(0, size - 8))) else {
            throw Self.refused("it must be a safetensors file, got \(size) bytes that are not; it may be cut short")
        }
        let header = [UInt8](try handle.read(upToCount: Int(length)) ?? Data())
        (entries, metadata) = try Self.parse(header)
        var (end, held) = (0, Int128(0))
        for entry in entries.values.sorted(by: Self.inOrder) {
            guard entry.range.lowerBound == end else {
                throw Self.refused("its tensors must follow each other without gaps; it is damaged")
            }
            (end, held) = (entry.range.upperBound, held + Int128(entry.range.count / entry.kind.bytes))
        }
        let rest = size - 8 - header.count
        guard end == rest else {
            throw Self.refused("it must hold \(end) bytes of tensors, got \(rest); it may be cut short")
        }
        guard held == numbers else {
            throw Self.refused("it must hold the \(numbers) numbers of its config.json, got \(held)")
        }
        data = [UInt8](try handle.readToEnd() ?? Data())
        guard data.count == end, hexDigest(data) == metadata["sha256"] else {
            throw Self.refused("it is damaged: its data are not those it was saved with; restore it from a copy")
        }
    }

    private static func inOrder(_ a: Entry, _ b: Entry) -> Bool {
        (a.range.lowerBound, a.range.upperBound) < (b.range.lowerBound, b.range.upperBound)
    }

    private static func refused(_ reason: String) -> ModelFolderError { .weights(reason) }

    private static func parse(_ header: [UInt8]) throws -> ([String: Entry], [String: String]) {
        let foreign = refused("it must be a safetensors file saved by trm_mlx, got another header")
        guard case .table(var table)? = try? JSON(header),
            case .table(let told)? = table.removeValue(forKey: "__metadata__")
        else { throw foreign }
        var metadata: [String: String] = [:]
        for (key, value) in told {
            guard case .text(let text) = value else { throw foreign }
            metadata[key] = text
        }
        return (try table.mapValues { try entry($0) ?? { throw foreign }() }, metadata)
    }

    /// A tensor's place; nil if its shape, type and offsets do not agree.
    private static func entry(_ value: JSON) throws -> Entry? {
        guard case .table(let table) = value, table.count == 3, case .text(let type)? = table["dtype"],
            case .list(let sizes)? = table["shape"], case .list(let offsets)? = table["data_offsets"],
            sizes.count <= 8, offsets.count == 2
        else { return nil }
        guard let kind = Kind(rawValue: type) else {
            throw refused("dtype must be F32, F16, BF16 or U32, got \(JSON.text(type))")
        }
        var (shape, bytes) = ([Int](), kind.bytes)
        for size in sizes {
            guard case .integer(let size) = size, size >= 0 else { return nil }
            let (product, overflow) = bytes.multipliedReportingOverflow(by: size)
            guard !overflow else { return nil }
            (shape, bytes) = (shape + [size], product)
        }
        guard case .integer(let start) = offsets[0], case .integer(let stop) = offsets[1], 0 <= start, start <= stop,
            stop - start == bytes
        else { return nil }
        return Entry(kind: kind, shape: shape, range: start..<stop)
    }

    /// The numbers of a tensor of this name, all finite; nil if it is of whole numbers.
    func floats(_ name: String) throws -> [Float]? {
        guard let entry = entries[name], entry.kind != .u32 else { return nil }
        let numbers: [Float] = data.withUnsafeBytes { bytes in
            switch entry.kind {
            case .f32:
                stride(from: entry.range.lowerBound, to: entry.range.upperBound, by: 4).map {
                    Float(bitPattern: UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt32.self)))
                }
            default:
                stride(from: entry.range.lowerBound, to: entry.range.upperBound, by: 2).map {
                    let bits = UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt16.self))
                    return entry.kind == .f16 ? float(half: bits) : Float(bitPattern: UInt32(bits) << 16)
                }
            }
        }
        guard numbers.allSatisfy(\.isFinite) else {
            throw Self.refused("\(JSON.text(name)) must hold finite numbers, got NaN or infinity")
        }
        return numbers
    }

    /// The words of a tensor of this name; nil if it is of other numbers.
    func words(_ name: String) -> [UInt32]? {
        guard let entry = entries[name], entry.kind == .u32 else { return nil }
        return data.withUnsafeBytes { bytes in
            stride(from: entry.range.lowerBound, to: entry.range.upperBound, by: 4).map {
                UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: $0, as: UInt32.self))
            }
        }
    }
}

/// The number of these bits of a float16. Intel Macs have no `Float16`.
func float(half bits: UInt16) -> Float {
    let (sign, exponent, fraction) = (bits >> 15, Int(bits >> 10 & 31), UInt32(bits & 1023))
    let size: Float =
        switch exponent {
        case 0: Float(fraction) * 0x1p-24
        case 31: fraction == 0 ? .infinity : .nan
        default: Float(bitPattern: UInt32(exponent + 112) << 23 | fraction << 13)
        }
    return sign == 1 ? -size : size
}
