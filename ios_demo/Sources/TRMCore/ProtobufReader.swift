/// The fields of one protocol buffer message, in their order; never reads outside its bytes.
///
/// Source: protobuf.dev/programming-guides/encoding.
struct ProtobufReader {
    enum Value {
        case number(UInt64)
        case word(UInt32)
        case bytes(ArraySlice<UInt8>)
        /// Eight bytes, which no field that we read has.
        case long
    }

    /// The bytes are not a message. Whoever asked knows of which file.
    struct Malformed: Error {}

    private let bytes: ArraySlice<UInt8>
    private var at: Int

    init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        at = bytes.startIndex
    }

    /// The next field, or nil at the end.
    mutating func next() throws(Malformed) -> (field: UInt64, value: Value)? {
        if at == bytes.endIndex { return nil }
        let key = try number()
        guard key >> 3 != 0, key <= UInt64(UInt32.max) else { throw Malformed() }
        let value: Value
        switch key & 7 {
        case 0: value = .number(try number())
        case 1:
            _ = try take(8)
            value = .long
        case 2: value = .bytes(try take(try number()))
        case 5: value = .word(try take(4).reversed().reduce(0) { $0 << 8 | UInt32($1) })
        default: throw Malformed()
        }
        return (key >> 3, value)
    }

    private mutating func number() throws(Malformed) -> UInt64 {
        var value: UInt64 = 0
        for shift in stride(from: 0, through: 63, by: 7) {
            guard at < bytes.endIndex else { throw Malformed() }
            let byte = bytes[at]
            at += 1
            value |= UInt64(byte & 0x7F) << UInt64(shift)
            if byte < 0x80 { return value }
        }
        throw Malformed()
    }

    private mutating func take(_ size: UInt64) throws(Malformed) -> ArraySlice<UInt8> {
        guard size <= UInt64(bytes.endIndex - at) else { throw Malformed() }
        let start = at
        at += Int(size)
        return bytes[start..<at]
    }
}
