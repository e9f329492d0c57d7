/// What a SentencePiece model file says, read without trust.
struct TokenizerModel {
    enum Kind: UInt64 {
        case normal = 1
        case unknown, control, userDefined, unused, byte
    }

    struct Piece {
        var bytes: [UInt8] = []
        var score: Float = 0
        var kind = Kind.normal
    }

    /// How SentencePiece writes a space.
    static let space: UInt32 = 0x2581
    static let spaceBytes: [UInt8] = [0xE2, 0x96, 0x81]
    /// Training makes pieces of at most 16 characters.
    static let longestPiece = 64
    /// Token files hold ids of 16 bits.
    static let mostPieces = 1 << 16

    private(set) var pieces: [Piece] = []
    private(set) var unknownSurface = Array(" \u{2047} ".utf8)
    /// The options that change ids or text, with what a file means that does not name them.
    private var type: UInt64 = 1
    private var byteFallback = false
    private var spaceAsSuffix = false
    private var normalizes = false
    private var dummyPrefix = true
    private var removesSpaces = true
    private var escapesSpaces = true

    /// - Throws: `TokenizerError` if the bytes are no model, or one that would not encode and decode as here.
    init(_ bytes: [UInt8]) throws(TokenizerError) {
        do throws(ProtobufReader.Malformed) {
            try read(bytes[...])
        } catch {
            throw .damaged(bytes: bytes.count)
        }
        guard isWhole else { throw .damaged(bytes: bytes.count) }
        let wrong = rules.filter { !$0.holds }.map(\.rule)
        guard wrong.isEmpty else { throw .foreign(without: wrong) }
    }

    private mutating func read(_ bytes: ArraySlice<UInt8>) throws(ProtobufReader.Malformed) {
        var file = ProtobufReader(bytes)
        while let (field, value) = try file.next() {
            guard case .bytes(let message) = value else { continue }
            switch field {
            case 1 where pieces.count <= Self.mostPieces: try readPiece(message)
            case 2: try readTrainer(message)
            case 3: try readNormalizer(message)
            case 5: try readDenormalizer(message)
            default: break
            }
        }
    }

    private mutating func readPiece(_ bytes: ArraySlice<UInt8>) throws(ProtobufReader.Malformed) {
        var piece = Piece()
        var message = ProtobufReader(bytes)
        while let field = try message.next() {
            switch field {
            case (1, .bytes(let value)): piece.bytes = Array(value)
            case (2, .word(let value)): piece.score = Float(bitPattern: value)
            case (3, .number(let value)):
                guard let kind = Kind(rawValue: value) else { throw ProtobufReader.Malformed() }
                piece.kind = kind
            default: break
            }
        }
        pieces.append(piece)
    }

    private mutating func readTrainer(_ bytes: ArraySlice<UInt8>) throws(ProtobufReader.Malformed) {
        var message = ProtobufReader(bytes)
        while let field = try message.next() {
            switch field {
            case (3, .number(let value)): type = value
            case (24, .number(let value)): spaceAsSuffix = value != 0
            case (35, .number(let value)): byteFallback = value != 0
            case (44, .bytes(let value)): unknownSurface = Array(value)
            default: break
            }
        }
    }

    private mutating func readNormalizer(_ bytes: ArraySlice<UInt8>) throws(ProtobufReader.Malformed) {
        var message = ProtobufReader(bytes)
        while let field = try message.next() {
            switch field {
            case (2, .bytes(let value)): normalizes = normalizes || !value.isEmpty
            case (3, .number(let value)): dummyPrefix = value != 0
            case (4, .number(let value)): removesSpaces = value != 0
            case (5, .number(let value)): escapesSpaces = value != 0
            default: break
            }
        }
    }

    private mutating func readDenormalizer(_ bytes: ArraySlice<UInt8>) throws(ProtobufReader.Malformed) {
        var message = ProtobufReader(bytes)
        while let field = try message.next() {
            if case (2, .bytes(let value)) = field { normalizes = normalizes || !value.isEmpty }
        }
    }

    /// What SentencePiece itself asks of a model, and that every piece is text.
    private var isWhole: Bool {
        let texts = Set(pieces.lazy.filter { isText($0.kind) }.map(\.bytes))
        let reserved = Set(pieces.lazy.filter { !isText($0.kind) }.map(\.bytes))
        return texts.count + reserved.count == pieces.count  // none twice
            && pieces.allSatisfy { !$0.bytes.isEmpty && UTF8Scan.scalars(of: $0.bytes) != nil && !$0.score.isNaN }
            && pieces.count { $0.kind == .unknown } == 1
            && UTF8Scan.scalars(of: unknownSurface) != nil
    }

    private var rules: [(rule: String, holds: Bool)] {
        let texts = pieces.filter { isText($0.kind) }
        let reserved = pieces.filter { !isText($0.kind) }
        let bytes = Set(pieces.lazy.filter { $0.kind == .byte }.map(\.bytes))
        let typed = Set(texts.map(\.bytes))
        return [
            ("BPE", type == 2),
            ("byte fallback", byteFallback && bytes == Set((0...255).map(Self.name(ofByte:)))),
            ("no space as suffix", !spaceAsSuffix),
            ("no normalisation", !normalizes),
            ("no dummy prefix", !dummyPrefix),
            ("no removal of spaces", !removesSpaces),
            ("escaped spaces", escapesSpaces),
            ("only pieces that were learnt", texts.allSatisfy { $0.kind == .normal }),
            // SentencePiece looks a merged text up among the reserved pieces first.
            (
                "reserved pieces that text cannot spell",
                reserved.allSatisfy {
                    !typed.contains($0.bytes) && $0.bytes.count > UTF8Scan.length(first: $0.bytes[0])
                }
            ),
            ("no piece over two words", texts.allSatisfy { !spansWords($0.bytes) }),
            ("at most \(Self.mostPieces) pieces", pieces.count <= Self.mostPieces),
            (
                "pieces of at most \(Self.longestPiece) bytes",
                texts.allSatisfy { $0.bytes.count <= Self.longestPiece }
            ),
        ]
    }

    private func isText(_ kind: Kind) -> Bool {
        kind == .normal || kind == .userDefined || kind == .unused
    }

    /// Whether a space follows another character: text may be cut before such a space only if no piece has one.
    private func spansWords(_ bytes: [UInt8]) -> Bool {
        let spaces = (UTF8Scan.scalars(of: bytes) ?? []).map { $0 == Self.space || $0 == 0x20 }
        return zip(spaces, spaces.dropFirst()).contains { !$0 && $1 }
    }

    /// `<0x0A>` of 10.
    static func name(ofByte byte: Int) -> [UInt8] {
        let digits = String(byte, radix: 16, uppercase: true)
        return Array("<0x\(digits.count == 1 ? "0" : "")\(digits)>".utf8)
    }
}
