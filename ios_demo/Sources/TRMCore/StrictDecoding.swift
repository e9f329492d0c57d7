extension Decoder {
    /// The values of these keys; any other key is refused, as it is in Python.
    func values<Key: CodingKey>(_ keys: Key.Type) throws -> KeyedDecodingContainer<Key> {
        for found in try container(keyedBy: AnyKey.self).allKeys where Key(stringValue: found.stringValue) == nil {
            throw GenerationError.unknownKey(name: found.stringValue)
        }
        return try container(keyedBy: keys)
    }
}

extension KeyedDecodingContainer {
    /// The value of a key, or what holds where it is missing.
    func value<Value: Decodable>(_ key: Key, or missing: Value) throws -> Value {
        contains(key) ? try decode(Value.self, forKey: key) : missing
    }
}

private struct AnyKey: CodingKey {
    let stringValue: String
    var intValue: Int? { nil }

    init(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
}
