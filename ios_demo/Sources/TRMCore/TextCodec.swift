/// Turns text into token ids and back; ids from 0 to that of `end` are control tokens and unknown.
public protocol TextCodec: Sendable {
    associatedtype Stream: TextStream

    /// Number of token ids.
    var vocabulary: Int { get }
    /// The id that a text begins with.
    var bos: Int32 { get }
    /// The id that ends a text.
    var eos: Int32 { get }
    /// The id that ends a turn of a chat.
    var end: Int32 { get }
    /// The UTF-8 bytes that each id decodes to: one of a byte token, none of a control token.
    var pieceBytes: [[UInt8]] { get }

    /// The ids of a text, without `bos` or `eos`.
    func encode(_ text: String) throws -> [Int32]
    /// A decoder that takes one id at a time.
    func stream() throws -> Stream
}

/// Text as it becomes certain, never half a character.
public protocol TextStream {
    /// The text that this id made certain.
    mutating func push(_ id: Int32) throws -> String
    /// The text of the bytes still waiting.
    mutating func finish() throws -> String
}
