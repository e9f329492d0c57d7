extension Tokenizer: TextCodec {
    public var pieceBytes: [[UInt8]] {
        pieces.map { piece in
            switch piece {
            case .text(let text): Array(text.utf8)
            case .byte(let byte): [byte]
            }
        }
    }
}

extension StreamingDetokenizer: TextStream {}
