/// A table of the manifest, each key of which must be asked for once.
struct ManifestTable {
    private var left: [String: JSON]
    private let path: String

    init(_ values: [String: JSON], path: String) { (left, self.path) = (values, path) }

    mutating func pass(_ key: String) { left[key] = nil }

    /// The table must hold nothing else.
    func end() throws(ManifestError) {
        if let key = left.keys.min() { throw .unknownKey(path + key) }
    }

    mutating func text(_ key: String) throws(ManifestError) -> String {
        guard case .text(let text) = try value(key) else { throw .wrongType(path + key, wanted: "text") }
        return text
    }

    mutating func integer(_ key: String) throws(ManifestError) -> Int {
        guard case .integer(let number) = try value(key) else {
            throw .wrongType(path + key, wanted: "a whole number")
        }
        return number
    }

    mutating func number(_ key: String) throws(ManifestError) -> Double {
        switch try value(key) {
        case .integer(let number): return Double(number)
        case .number(let number): return number
        default: throw .wrongType(path + key, wanted: "a finite number")
        }
    }

    mutating func choice<Choice: RawRepresentable & CaseIterable>(_ key: String) throws(ManifestError) -> Choice
    where Choice.RawValue == String {
        guard case .text(let text) = try value(key), let choice = Choice(rawValue: text) else {
            let known = Choice.allCases.map(\.rawValue).joined(separator: ", ")
            throw .wrongType(path + key, wanted: "one of \(known)")
        }
        return choice
    }

    mutating func integers(_ key: String) throws(ManifestError) -> [Int] {
        var numbers: [Int] = []
        for each in try list(key) {
            guard case .integer(let number) = each else {
                throw .wrongType(path + key, wanted: "a list of whole numbers")
            }
            numbers.append(number)
        }
        return numbers
    }

    mutating func table<Value>(
        _ key: String, _ read: (inout ManifestTable) throws(ManifestError) -> Value
    ) throws(ManifestError) -> Value {
        try Self.value(try value(key), path + key, read)
    }

    mutating func tables<Value>(
        _ key: String, _ read: (inout ManifestTable) throws(ManifestError) -> Value
    ) throws(ManifestError) -> [Value] {
        var found: [Value] = []
        for (place, each) in try list(key).enumerated() {
            found.append(try Self.value(each, "\(path)\(key)[\(place)]", read))
        }
        return found
    }

    private mutating func list(_ key: String) throws(ManifestError) -> [JSON] {
        guard case .list(let list) = try value(key) else { throw .wrongType(path + key, wanted: "a list") }
        return list
    }

    private mutating func value(_ key: String) throws(ManifestError) -> JSON {
        guard let value = left.removeValue(forKey: key) else { throw .missingKey(path + key) }
        return value
    }

    private static func value<Value>(
        _ value: JSON, _ path: String, _ read: (inout ManifestTable) throws(ManifestError) -> Value
    ) throws(ManifestError) -> Value {
        guard case .table(let values) = value else { throw .wrongType(path, wanted: "a table") }
        var table = ManifestTable(values, path: path + ".")
        let found = try read(&table)
        try table.end()
        return found
    }
}
