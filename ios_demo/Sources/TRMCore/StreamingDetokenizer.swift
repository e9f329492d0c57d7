/// Text as it becomes certain: what `push` and `finish` gave, joined, is `decode` of all the ids.
public struct StreamingDetokenizer: Sendable {
    private let pieces: [Tokenizer.Piece]
    /// At most 3 bytes that may yet become one character.
    private var waiting: [UInt8] = []

    init(_ pieces: [Tokenizer.Piece]) {
        self.pieces = pieces
    }

    /// The text that this id made certain; never half a character.
    ///
    /// - Throws: `TokenizerError.idOutOfRange`; the stream is then as it was.
    public mutating func push(_ id: Int32) throws -> String {
        guard pieces.indices.contains(Int(id)) else {
            throw TokenizerError.idOutOfRange(id: id, vocabulary: pieces.count)
        }
        switch pieces[Int(id)] {
        case .text(let text):  // SentencePiece ends a run of bytes at any other id, control ids included
            return finish() + text
        case .byte(let byte):
            waiting.append(byte)
            return take(last: false)
        }
    }

    /// The text of the bytes still waiting; the stream is then as new.
    public mutating func finish() -> String {
        take(last: true)
    }

    private mutating func take(last: Bool) -> String {
        var text = ""
        while let first = waiting.first {
            let open = waiting.count < UTF8Scan.length(first: first)
            if open, !last, waiting.dropFirst().allSatisfy(UTF8Scan.isContinuation) { break }
            let size = UTF8Scan.scalar(in: waiting, at: 0)?.size
            text += size.map { String(decoding: waiting.prefix($0), as: UTF8.self) } ?? "\u{FFFD}"
            waiting.removeFirst(size ?? 1)
        }
        return text
    }
}
