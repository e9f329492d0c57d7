import Foundation
import TRMCore

@testable import TRMReference

/// What tests/golden/make_reference.py wrote.
enum Golden {
    static let names = ["rope", "alibi", "learned", "sinusoidal", "none", "affine", "lut"]
    static let repository = URL(fileURLWithPath: #filePath)
        .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    static func folder(_ name: String) -> URL {
        repository.appendingPathComponent("tests/golden/reference/\(name)")
    }

    struct Record: Decodable {
        struct Row: Decodable {
            let depth, tokens: Int
            let logits: String
        }

        let revision, manifestSha256: String
        let parameters: Int
        let ids: [Int32]
        let rows: [Row]
    }

    static func record(_ name: String) throws -> Record {
        let file = folder(name).appendingPathComponent("logits.json")
        return try read(Record.self, file)
    }

    static func read<Kind: Decodable>(_ kind: Kind.Type, _ file: URL) throws -> Kind {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(kind, from: Data(contentsOf: file))
    }

    /// Little-endian float32 in base 64.
    static func logits(_ text: String) -> [Float] {
        let bytes = [UInt8](Data(base64Encoded: text) ?? Data())
        return stride(from: 0, to: bytes.count, by: 4).map { place in
            Float(bitPattern: (0..<4).reduce(UInt32(0)) { $0 | UInt32(bytes[place + $1]) << UInt32(8 * $1) })
        }
    }

    /// The largest difference, in parts of the largest logit.
    static func difference(_ found: [Float], _ wanted: [Float]) -> Float {
        guard found.count == wanted.count, let largest = wanted.map(abs).max() else { return .infinity }
        let gaps = zip(found, wanted).map { abs($0 - $1) }
        return gaps.contains { $0.isNaN } ? .infinity : (gaps.max() ?? .infinity) / largest
    }
}

/// A copy of a golden folder that may be damaged.
final class Copy {
    let folder: URL

    init(of name: String) throws {
        let place = FileManager.default.temporaryDirectory.appendingPathComponent("trm-\(UUID().uuidString)")
        try FileManager.default.copyItem(at: Golden.folder(name), to: place)
        folder = place
    }

    deinit { try? FileManager.default.removeItem(at: folder) }

    var weights: URL { folder.appendingPathComponent("model.safetensors") }

    /// The text of config.json replaced in, with the weights told that it is theirs.
    func config(_ old: String, _ new: String) throws {
        let file = folder.appendingPathComponent("config.json")
        let before = try String(contentsOf: file, encoding: .utf8)
        let after = before.replacingOccurrences(of: old, with: new)
        guard after != before else { throw Unchanged() }
        try Data(after.utf8).write(to: file)
        try header(hexDigest([UInt8](before.utf8)), hexDigest([UInt8](after.utf8)))
    }

    /// Text of the header replaced, and its length with it.
    func header(_ old: String, _ new: String) throws {
        let (header, data) = try parts()
        let changed = header.replacingOccurrences(of: old, with: new)
        guard changed != header else { throw Unchanged() }
        try write(changed, data)
    }

    /// Bytes of the data replaced, and their hash with them.
    func data(_ change: (inout [UInt8]) -> Void) throws {
        let (header, before) = try parts()
        var after = before
        change(&after)
        try write(header.replacingOccurrences(of: hexDigest(before), with: hexDigest(after)), after)
    }

    /// A tensor of float16 ones at the end.
    func add(_ name: String, count: Int) throws {
        let (header, before) = try parts()
        let after = before + (0..<count).flatMap { _ in [0x00, 0x3C] as [UInt8] }
        let entry = "{\"dtype\": \"F16\", \"shape\": [\(count)], \"data_offsets\": [\(before.count), \(after.count)]}"
        let changed = header.dropLast() + ", \"\(name)\": \(entry)}"
        try write(changed.replacingOccurrences(of: hexDigest(before), with: hexDigest(after)), after)
    }

    func parts() throws -> (header: String, data: [UInt8]) {
        let bytes = [UInt8](try Data(contentsOf: weights))
        let length = Int(bytes[0]) | Int(bytes[1]) << 8 | Int(bytes[2]) << 16
        return (String(decoding: bytes[8..<8 + length], as: UTF8.self), Array(bytes[(8 + length)...]))
    }

    func write(_ header: String, _ data: [UInt8]) throws {
        let length = (0..<8).map { UInt8(truncatingIfNeeded: header.utf8.count >> (8 * $0)) }
        try Data(length + header.utf8 + data).write(to: weights)
    }

    /// Where the data of a tensor begin.
    func start(of name: String) throws -> Int {
        let header = try parts().header
        let rest = header.components(separatedBy: "\"\(name)\": ").last ?? ""
        let offsets = rest.components(separatedBy: "\"data_offsets\": [").dropFirst().first ?? ""
        guard let start = Int(offsets.prefix { $0.isNumber }) else { throw Unchanged() }
        return start
    }

    struct Unchanged: Error {}
}
