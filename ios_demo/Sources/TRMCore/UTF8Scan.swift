/// UTF-8 read one scalar at a time, so that each malformed byte stands for itself, as SentencePiece has it.
enum UTF8Scan {
    static let replacement: UInt32 = 0xFFFD

    /// The scalar that begins at a place and its size in bytes; nil if the byte there begins none.
    static func scalar(in bytes: [UInt8], at place: Int) -> (value: UInt32, size: Int)? {
        let first = bytes[place]
        if first < 0x80 { return (UInt32(first), 1) }
        let size = length(first: first)
        guard size > 1, place + size <= bytes.count else { return nil }
        var value = UInt32(first) & (0x7F >> UInt32(size))
        for offset in 1..<size {
            let byte = bytes[place + offset]
            guard isContinuation(byte) else { return nil }
            value = value << 6 | UInt32(byte & 0x3F)
        }
        let least: UInt32 = size == 2 ? 0x80 : size == 3 ? 0x800 : 0x10000
        guard value >= least, value <= 0x10FFFF, !(0xD800..<0xE000).contains(value) else { return nil }
        return (value, size)
    }

    /// The scalars of bytes; nil unless all of them are UTF-8.
    static func scalars(of bytes: [UInt8]) -> [UInt32]? {
        var values: [UInt32] = []
        var place = 0
        while place < bytes.count {
            guard let (value, size) = scalar(in: bytes, at: place) else { return nil }
            values.append(value)
            place += size
        }
        return values
    }

    /// Bytes of the scalar that begins with this byte; 1 if none does.
    static func length(first: UInt8) -> Int {
        switch first {
        case 0xC2...0xDF: 2
        case 0xE0...0xEF: 3
        case 0xF0...0xF4: 4
        default: 1
        }
    }

    static func isContinuation(_ byte: UInt8) -> Bool {
        byte & 0xC0 == 0x80
    }
}
