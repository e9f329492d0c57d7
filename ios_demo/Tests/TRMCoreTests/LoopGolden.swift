import Testing

@testable import TRMCore

/// `loop.json`.
struct LoopVectors: Decodable {
    struct Ids: Decodable {
        let bos: Int32
        let eos: Int32
        let end: Int32
    }
    struct Row: Decodable {
        let first: Int
        let bytes: [Hex]
    }
    struct Encoded: Decodable {
        let text: String
        let ids: [Int32]
    }
    let ids: [Ids]
    let pieces: [Row]
    let encoded: [Encoded]
    let cases: [LoopCase]
}

struct LoopCase: Decodable, CustomTestStringConvertible {
    struct Model: Decodable {
        let seed: UInt64
        let context: Int
        let depths: [Int]
    }
    let name: String
    let model: Model
    let wanted: [Int32]
    let prompt: [Int32]
    let settings: GenerationSettings
    let tokens: [Int32]
    let texts: [String]
    let reason: StopReason

    var testDescription: String { name }
}

/// A tokenizer from the tables of a file: it encodes the texts of the file alone.
struct PieceTable: TextCodec {
    let pieceBytes: [[UInt8]]
    let ids: [[UInt8]: [Int32]]
    let bos: Int32
    let eos: Int32
    let end: Int32
    var vocabulary: Int { pieceBytes.count }

    struct Unknown: Error {
        let text: String
    }

    init(_ vectors: LoopVectors) throws {
        pieceBytes = vectors.pieces.flatMap { $0.bytes.map(\.bytes) }
        ids = Dictionary(uniqueKeysWithValues: vectors.encoded.map { (Array($0.text.utf8), $0.ids) })
        let special = try #require(vectors.ids.first)
        (bos, eos, end) = (special.bos, special.eos, special.end)
    }

    func encode(_ text: String) throws -> [Int32] {
        guard let found = ids[Array(text.utf8)] else { throw Unknown(text: text) }
        return found
    }

    func stream() -> PieceStream { PieceStream(pieces: pieceBytes) }
}

/// Text of pieces as it becomes certain; ids from 7 to 262 are single bytes.
struct PieceStream: TextStream {
    let pieces: [[UInt8]]
    var waiting: [UInt8] = []

    mutating func push(_ id: Int32) -> String {
        guard 7...262 ~= id else { return finish() + String(decoding: pieces[Int(id)], as: UTF8.self) }
        waiting += pieces[Int(id)]
        return take(last: false)
    }

    mutating func finish() -> String { take(last: true) }

    private mutating func take(last: Bool) -> String {
        var text = ""
        while let first = waiting.first {
            let size = first < 0xC2 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 1
            if waiting.count < size, !last, waiting.dropFirst().allSatisfy({ $0 >> 6 == 0b10 }) { break }
            let character = String(validating: waiting.prefix(size), as: UTF8.self)
            text += waiting.count < size ? "\u{FFFD}" : character ?? "\u{FFFD}"
            waiting.removeFirst(character == nil || waiting.count < size ? 1 : size)
        }
        return text
    }
}

/// A table whose answer is given, as long as there is one.
final class WantingModel: StepModel {
    private let table: TableStepModel
    private let wanted: [Int: Int32]  // by the tokens before it
    private let appended: @Sendable (Int) throws -> Void

    /// - Parameter appended: told the position after each call.
    init(
        _ table: TableStepModel, _ wanted: [Int32] = [], after prompt: Int = 1,
        appended: @escaping @Sendable (Int) throws -> Void = { _ in }
    ) {
        self.table = table
        self.wanted = Dictionary(uniqueKeysWithValues: wanted.enumerated().map { ($0 + prompt, $1) })
        self.appended = appended
    }

    var vocabulary: Int { table.vocabulary }
    var context: Int { table.context }
    var depths: [Int] { table.depths }
    var position: Int { table.position }

    func reset(depth: Int) throws { try table.reset(depth: depth) }

    func append(_ tokens: [Int32]) throws -> [Float] {
        var scores = try table.append(tokens)
        if let id = wanted[position] { scores[Int(id)] = 16 }
        try appended(position)
        return scores
    }
}
