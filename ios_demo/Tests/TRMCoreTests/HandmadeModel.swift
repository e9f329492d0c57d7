/// A SentencePiece model file made by hand, to be made wrong by hand.
struct HandmadeModel {
    struct Piece {
        var bytes: [UInt8]
        var score: Float = 0
        var kind: UInt64?
    }

    var pieces: [Piece]
    var trainer: [UInt64: UInt64] = [3: 2, 35: 1]
    var normalizer: [UInt64: UInt64] = [3: 0, 4: 0]
    var charsmap: [UInt8] = []
    var denormalizerCharsmap: [UInt8] = []

    static let control = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>"]

    /// The reserved pieces and then these, earlier ones with higher scores.
    init(_ learnt: [String]) {
        pieces = [Piece(bytes: Array("<unk>".utf8), kind: 2)]
        pieces += Self.control.map { Piece(bytes: Array($0.utf8), kind: 3) }
        for byte in 0...255 {
            let digits = String(byte + 256, radix: 16, uppercase: true).dropFirst()
            pieces.append(Piece(bytes: Array("<0x\(digits)>".utf8), kind: 6))
        }
        for (rank, text) in learnt.enumerated() { pieces.append(Piece(bytes: Array(text.utf8), score: -Float(rank))) }
    }

    var bytes: [UInt8] {
        var file: [UInt8] = []
        for piece in pieces {
            var message = Self.field(1, piece.bytes) + [2 << 3 | 5]
            withUnsafeBytes(of: piece.score.bitPattern.littleEndian) { message += $0 }
            if let kind = piece.kind { message += Self.varint(3 << 3) + Self.varint(kind) }
            file += Self.field(1, message)
        }
        file += Self.field(2, Self.options(trainer))
        file += Self.field(3, Self.field(2, charsmap) + Self.options(normalizer))
        return file + Self.field(5, Self.field(2, denormalizerCharsmap))
    }

    private static func options(_ values: [UInt64: UInt64]) -> [UInt8] {
        values.sorted { $0.key < $1.key }.flatMap { varint($0.key << 3) + varint($0.value) }
    }

    private static func field(_ number: UInt64, _ bytes: [UInt8]) -> [UInt8] {
        varint(number << 3 | 2) + varint(UInt64(bytes.count)) + bytes
    }

    private static func varint(_ value: UInt64) -> [UInt8] {
        value < 0x80 ? [UInt8(value)] : [UInt8(value & 0x7F) | 0x80] + varint(value >> 7)
    }
}
