import Foundation

/// Text to ids and back without losing a byte: the ids and the text of `trm_mlx.tokenizer.Tokenizer`.
///
/// Works on bytes throughout: to a `String` composed and decomposed accents are equal and CR LF is one character.
/// Control tokens cannot be typed: only their ids put them in.
public struct Tokenizer: Sendable {
    /// What an id decodes to.
    enum Piece: Sendable {
        case text(String)
        case byte(UInt8)
    }

    /// Bytes of the largest file that is read; 8,192 pieces take 0.13 MiB.
    public static let largestFile = 16 << 20

    public let unknown: Int32
    public let bos: Int32
    public let eos: Int32
    public let pad: Int32
    public let user: Int32
    public let assistant: Int32
    public let end: Int32

    let pieces: [Piece]
    private let bytePieces: [Int32]
    private let merges: PairMerges

    /// Number of token ids.
    public var vocabulary: Int { pieces.count }

    /// The tokenizer in a SentencePiece model file.
    public init(contentsOf url: URL) throws {
        let file: Data?
        do {
            let handle = try FileHandle(forReadingFrom: url)
            defer { try? handle.close() }
            file = try handle.read(upToCount: Self.largestFile + 1)
        } catch {
            throw TokenizerError.unreadable(file: url.lastPathComponent)
        }
        try self.init(Array(file ?? Data()))
    }

    /// The tokenizer of the bytes of a SentencePiece model file.
    public init(_ bytes: [UInt8]) throws {
        guard bytes.count <= Self.largestFile else { throw TokenizerError.tooLarge(limit: Self.largestFile) }
        let model = try TokenizerModel(bytes)
        var reserved: [[UInt8]: Int32] = [:]
        var unknown: Int32?
        for (id, piece) in zip(Int32(0)..., model.pieces) {
            switch piece.kind {
            case .control, .byte: reserved[piece.bytes] = id
            case .unknown: unknown = id
            case .normal, .userDefined, .unused: break
            }
        }
        func find(_ name: String) throws -> Int32 {
            guard let id = reserved[Array(name.utf8)] else {
                throw TokenizerError.foreign(without: ["a control piece \(name)"])
            }
            return id
        }
        guard let unknown else { throw TokenizerError.damaged(bytes: bytes.count) }
        let bytePieces = (0...255).compactMap { reserved[TokenizerModel.name(ofByte: $0)] }
        let values = Dictionary(zip(bytePieces, UInt8.min...UInt8.max)) { first, _ in first }
        self.unknown = unknown
        self.bytePieces = bytePieces
        (bos, eos, pad) = (try find("<s>"), try find("</s>"), try find("<pad>"))
        (user, assistant, end) = (try find("<|user|>"), try find("<|assistant|>"), try find("<|end|>"))
        pieces = zip(Int32(0)..., model.pieces).map { id, piece in
            switch piece.kind {
            case .control: .text("")
            case .unknown: .text(String(decoding: model.unknownSurface, as: UTF8.self))
            case .byte, .normal, .userDefined, .unused:
                values[id].map(Piece.byte) ?? .text(Self.text(of: piece.bytes))
            }
        }
        merges = PairMerges(model.pieces)
    }

    /// The ids of text, without bos or eos.
    public func encode(_ text: String) -> [Int32] {
        encode(Array(text.utf8))
    }

    /// The ids of bytes; each that is not UTF-8 is read as U+FFFD.
    public func encode(_ bytes: [UInt8]) -> [Int32] {
        let space = merges.symbol(of: TokenizerModel.space)
        var ids: [Int32] = []
        var word = Word(merges)
        var inWord = false
        var place = 0
        while place < bytes.count {
            let (scalar, size) = UTF8Scan.scalar(in: bytes, at: place) ?? (UTF8Scan.replacement, 1)
            place += size
            if scalar == TokenizerModel.space {  // as bytes, since as a piece it would come back as a space
                word.take { append($0, to: &ids) }
                append(~Int32(truncatingIfNeeded: scalar), to: &ids)
            } else if scalar == 0x20 {
                if inWord { word.take { append($0, to: &ids) } }  // no piece spans this place, so the ids stay
                word.append(space)
            } else {
                word.append(merges.symbol(of: scalar))
            }
            inWord = scalar != 0x20
        }
        word.take { append($0, to: &ids) }
        return ids
    }

    /// The text of ids; control ids give nothing, each byte that is not UTF-8 gives U+FFFD.
    ///
    /// - Throws: `TokenizerError.idOutOfRange`.
    public func decode(_ ids: [Int32]) throws -> String {
        var stream = stream()
        var text = ""
        for id in ids { text += try stream.push(id) }
        return text + stream.finish()
    }

    /// A decoder that takes one id at a time.
    public func stream() -> StreamingDetokenizer {
        StreamingDetokenizer(pieces)
    }

    /// A symbol as its id, or as the bytes of a character that has none.
    private func append(_ symbol: Int32, to ids: inout [Int32]) {
        if symbol >= 0 {
            ids.append(symbol)
        } else if let scalar = Unicode.Scalar(UInt32(~symbol)) {
            for byte in UTF8.encode(scalar) ?? .init() { ids.append(bytePieces[Int(byte)]) }
        }
    }

    /// A piece with its spaces as spaces.
    private static func text(of bytes: [UInt8]) -> String {
        var text = String.UnicodeScalarView()
        for scalar in String(decoding: bytes, as: UTF8.self).unicodeScalars {
            text.append(scalar.value == TokenizerModel.space ? " " : scalar)
        }
        return String(text)
    }
}
