/// A JSON value that tells whole numbers from others, and both from true and false.
package enum JSON: Equatable {
    case null
    case bool(Bool)
    case integer(Int)
    case number(Double)
    case text(String)
    case list([JSON])
    case table([String: JSON])

    /// Reads RFC 8259, and less of it: no key twice in a table, because readers differ in which one they believe.
    package init(_ bytes: [UInt8]) throws {
        var reader = Reader(bytes: bytes)
        self = try reader.value(depth: 0)
        reader.skipSpace()
        guard reader.place == bytes.count else { throw Malformed(offset: reader.place) }
    }

    package struct Malformed: Error {
        package let offset: Int
    }
}

private struct Reader {
    static let deepest = 32

    let bytes: [UInt8]
    var place = 0

    private var next: UInt8? { place < bytes.count ? bytes[place] : nil }
    private var malformed: JSON.Malformed { JSON.Malformed(offset: place) }

    mutating func skipSpace() {
        while let byte = next, [0x20, 0x0a, 0x0d, 0x09].contains(byte) { place += 1 }
    }

    mutating func value(depth: Int) throws -> JSON {
        skipSpace()
        guard depth < Self.deepest, let byte = next else { throw malformed }
        switch byte {
        case UInt8(ascii: "{"): return try table(depth: depth)
        case UInt8(ascii: "["): return try list(depth: depth)
        case UInt8(ascii: "\""): return .text(try text())
        case UInt8(ascii: "n"): return try word("null", .null)
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        default: return try number()
        }
    }

    private mutating func take(_ wanted: Unicode.Scalar) throws {
        guard next == UInt8(ascii: wanted) else { throw malformed }
        place += 1
    }

    private mutating func taken(_ wanted: Unicode.Scalar) -> Bool {
        skipSpace()
        guard next == UInt8(ascii: wanted) else { return false }
        place += 1
        return true
    }

    private mutating func word(_ word: String, _ meaning: JSON) throws -> JSON {
        guard bytes[place...].starts(with: word.utf8) else { throw malformed }
        place += word.utf8.count
        return meaning
    }

    private mutating func table(depth: Int) throws -> JSON {
        var found: [String: JSON] = [:]
        try take("{")
        if taken("}") { return .table(found) }
        repeat {
            skipSpace()
            let key = try text()
            skipSpace()
            try take(":")
            guard found.updateValue(try value(depth: depth + 1), forKey: key) == nil else { throw malformed }
        } while taken(",")
        try take("}")
        return .table(found)
    }

    private mutating func list(depth: Int) throws -> JSON {
        var found: [JSON] = []
        try take("[")
        if taken("]") { return .list(found) }
        repeat { found.append(try value(depth: depth + 1)) } while taken(",")
        try take("]")
        return .list(found)
    }

    private mutating func digits() throws {
        let start = place
        while let byte = next, (0x30...0x39).contains(byte) { place += 1 }
        guard place > start else { throw malformed }
    }

    private mutating func number() throws -> JSON {
        let start = place
        if next == UInt8(ascii: "-") { place += 1 }
        let first = place
        try digits()
        guard bytes[first] != UInt8(ascii: "0") || place == first + 1 else { throw malformed }
        var whole = true
        if next == UInt8(ascii: ".") {
            (place, whole) = (place + 1, false)
            try digits()
        }
        if next == UInt8(ascii: "e") || next == UInt8(ascii: "E") {
            (place, whole) = (place + 1, false)
            if next == UInt8(ascii: "+") || next == UInt8(ascii: "-") { place += 1 }
            try digits()
        }
        let written = String(decoding: bytes[start..<place], as: UTF8.self)
        if whole, let integer = Int(written) { return .integer(integer) }
        guard let number = Double(written), number.isFinite else { throw malformed }
        return .number(number)
    }

    private mutating func text() throws -> String {
        try take("\"")
        var found: [UInt8] = []
        while let byte = next, byte != UInt8(ascii: "\"") {
            guard byte >= 0x20 else { throw malformed }
            place += 1
            if byte == UInt8(ascii: "\\") {
                found += String(try escaped()).utf8
            } else {
                found.append(byte)
            }
        }
        try take("\"")
        guard let text = String(validating: found, as: UTF8.self) else { throw malformed }
        return text
    }

    private mutating func escaped() throws -> Unicode.Scalar {
        guard let byte = next else { throw malformed }
        place += 1
        switch byte {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return Unicode.Scalar(byte)
        case UInt8(ascii: "b"): return "\u{8}"
        case UInt8(ascii: "f"): return "\u{c}"
        case UInt8(ascii: "n"): return "\n"
        case UInt8(ascii: "r"): return "\r"
        case UInt8(ascii: "t"): return "\t"
        case UInt8(ascii: "u"): break
        default: throw malformed
        }
        var code = try unit()
        if (0xd800..<0xdc00).contains(code) {  // the first half of a scalar above U+FFFF
            try take("\\")
            try take("u")
            let low = try unit()
            guard (0xdc00..<0xe000).contains(low) else { throw malformed }
            code = 0x10000 + (code - 0xd800) << 10 + (low - 0xdc00)
        }
        guard let scalar = Unicode.Scalar(code) else { throw malformed }
        return scalar
    }

    private mutating func unit() throws -> UInt32 {
        guard place + 4 <= bytes.count else { throw malformed }
        let digits = String(decoding: bytes[place..<place + 4], as: UTF8.self)
        guard digits.allSatisfy(\.isHexDigit), let code = UInt32(digits, radix: 16) else { throw malformed }
        place += 4
        return code
    }
}
