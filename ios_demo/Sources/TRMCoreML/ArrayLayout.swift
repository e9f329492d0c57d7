/// Where the numbers of an array lie in its buffer.
///
/// Strides cannot be counted on: rows have been seen wider than what they hold, and strides of nothing but zeros on
/// arrays that are contiguous. A layout that does not fit its buffer is refused instead of read.
struct ArrayLayout {
    let shape: [Int]
    let strides: [Int]

    /// - Parameters:
    ///   - strides: in numbers, as the array tells them.
    ///   - room: numbers that the buffer holds.
    init?(shape: [Int], strides told: [Int], room: Int) {
        guard shape.count == told.count, shape.allSatisfy({ $0 > 0 }) else { return nil }
        let believable = zip(shape, told).allSatisfy { $0 == 1 || $1 > 0 }
        let contiguous = shape.indices.map { shape[($0 + 1)...].reduce(1, *) }
        let strides = believable ? told : contiguous
        var last = 0
        for (size, stride) in zip(shape, strides) {
            let (reach, overflow) = (size - 1).multipliedReportingOverflow(by: stride)
            guard !overflow, reach <= room else { return nil }
            last += reach
        }
        guard last < room else { return nil }
        (self.shape, self.strides) = (shape, strides)
    }

    /// Offset, in numbers, of what lies at an index.
    func offset(_ index: [Int]) -> Int { zip(index, strides).reduce(0) { $0 + $1.0 * $1.1 } }
}

/// A number format of the package.
enum NumberFormat {
    case float16, float32

    var bytes: Int { self == .float16 ? 2 : 4 }

    /// The last axis of an array, whose other axes have one place each.
    func row(_ bytes: UnsafeRawBufferPointer, _ layout: ArrayLayout) -> [Float] {
        let (count, step) = (layout.shape.last ?? 0, layout.strides.last ?? 1)
        switch self {
        case .float32:
            return (0..<count).map { bytes.loadUnaligned(fromByteOffset: 4 * step * $0, as: Float.self) }
        case .float16:
            return (0..<count).map {
                Self.number(half: bytes.loadUnaligned(fromByteOffset: 2 * step * $0, as: UInt16.self))
            }
        }
    }

    /// The number that 16 bits stand for. `Float16` does it too, but not on a Mac with an Intel processor.
    static func number(half: UInt16) -> Float {
        let (sign, rest) = (UInt32(half & 0x8000) << 16, UInt32(half & 0x7fff))
        if rest >= 0x7c00 { return Float(bitPattern: sign | 0x7f80_0000 | (rest & 0x3ff) << 13) }
        let magnitude = Float(bitPattern: rest << 13) * 0x1p112  // exact: the exponent's offset, for subnormals too
        return Float(bitPattern: sign | magnitude.bitPattern)
    }
}

/// Copies new rows of the cache, (2 S_r, N, T, K), to their place in the whole one, (2 S, N, C, K).
func copyRows(
    _ count: Int, from rows: UnsafeRawBufferPointer, _ source: ArrayLayout, to position: Int,
    of cache: UnsafeMutableRawBufferPointer, _ target: ArrayLayout, format: NumberFormat
) {
    let (width, size) = (source.shape[3], format.bytes)
    let whole = source.strides[3] == 1 && target.strides[3] == 1 ? width : 1  // numbers in one piece
    for row in 0..<source.shape[0] {
        for head in 0..<source.shape[1] {
            for token in 0..<count {
                for k in stride(from: 0, to: width, by: whole) {
                    let from = source.offset([row, head, token, k]) * size
                    let to = target.offset([row, head, position + token, k]) * size
                    let piece = UnsafeRawBufferPointer(rebasing: rows[from..<from + whole * size])
                    UnsafeMutableRawBufferPointer(rebasing: cache[to..<to + whole * size]).copyMemory(from: piece)
                }
            }
        }
    }
}
