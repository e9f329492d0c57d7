import Foundation
import Testing

@testable import TRMCore

@Suite struct TokenizerTests {
    private static let learnt = [
        "▁", "a", "b", "e", "h", "l", "o", "\u{301}", "é", "e\u{301}", "ll", "he", "aa", "aaaa", "▁▁", "▁he", "hello",
        "\r", "\n", "\r\n", "lo", "xy",
    ]

    private func piece(_ text: String) -> Int32 {
        Int32((Self.learnt.firstIndex { $0.utf8.elementsEqual(text.utf8) } ?? -999) + 263)
    }

    @Test func bestScoreGoesFirstAndThenTheLeftmost() throws {
        let tokenizer = try Tokenizer(HandmadeModel(Self.learnt).bytes)
        #expect(tokenizer.encode("hello") == ["he", "ll", "o"].map(piece))
        #expect(tokenizer.encode("aaaaa aaa") == ["aaaa", "a", "▁", "aa", "a"].map(piece))
        #expect(tokenizer.encode("  he") == ["▁▁", "he"].map(piece))
    }

    @Test func piecesMayBeMadeOfCharactersThatAreNone() throws {
        let tokenizer = try Tokenizer(HandmadeModel(Self.learnt).bytes)
        #expect(tokenizer.encode("xyx") == [piece("xy"), 127])
    }

    @Test func equalLookingTextsKeepTheirOwnIds() throws {
        let tokenizer = try Tokenizer(HandmadeModel(Self.learnt).bytes)
        #expect(tokenizer.encode("\u{E9}") == [piece("\u{E9}")])
        #expect(tokenizer.encode("e\u{301}") == [piece("e\u{301}")])
        #expect(tokenizer.encode("\r\n\r") == ["\r\n", "\r"].map(piece))
        #expect(tokenizer.encode("▁") == [233, 157, 136])  // as bytes
    }

    @Test func controlPiecesCannotBeTyped() throws {
        let tokenizer = try Tokenizer(HandmadeModel(Self.learnt).bytes)
        let ids = tokenizer.encode(HandmadeModel.control.joined() + "<unk><0x41>")
        #expect(ids.allSatisfy { $0 >= 7 })
        #expect(try tokenizer.decode([1, 2, 3, 4, 5, 6]) == "")
    }

    @Test func anyTextComesBackWholeAndInWholeCharacters() throws {
        let tokenizer = try Tokenizer(HandmadeModel(Self.learnt).bytes)
        var draw = Seeded(seed: 1)
        for _ in 0..<500 {
            let text = randomText(&draw)
            var stream = tokenizer.stream()
            let deltas = try tokenizer.encode(text).map { try stream.push($0) } + [stream.finish()]
            #expect(Array(deltas.joined().utf8) == Array(text.utf8))
        }
    }

    @Test func streamHoldsACharacterBackUntilItsLastByte() throws {
        var stream = try Tokenizer(HandmadeModel(Self.learnt).bytes).stream()
        #expect(try "😀".utf8.map { try stream.push(7 + Int32($0)) } == ["", "", "", "😀"])
        #expect(try stream.push(7 + 0xE2) == "")
        #expect(throws: TokenizerError.idOutOfRange(id: -1, vocabulary: 285)) { try stream.push(-1) }
        #expect(try stream.push(7 + 0x41) == "\u{FFFD}A")
        #expect(stream.finish() == "")
    }

    @Test(arguments: [-1, 285, Int32.max, Int32.min])
    func idsOutsideTheVocabularyAreRefused(id: Int32) throws {
        let tokenizer = try Tokenizer(HandmadeModel(Self.learnt).bytes)
        let refusal = TokenizerError.idOutOfRange(id: id, vocabulary: 285)
        #expect(throws: refusal) { try tokenizer.decode([7, id]) }
        #expect(refusal.localizedDescription.contains("from 0 to 284, got \(id)"))
    }

    @Test func aLongRunOfOneLetterIsReadInItsStride() throws {
        let tokenizer = try Tokenizer(HandmadeModel(Self.learnt).bytes)
        let count = 25_000  // were the work quadratic, this would take minutes
        #expect(
            tokenizer.encode(String(repeating: "a", count: 4 * count))
                == Array(repeating: piece("aaaa"), count: count))
    }

    // What is refused

    static let faults: [(String, @Sendable (inout HandmadeModel) -> Void)] = [
        ("BPE", { $0.trainer[3] = 1 }),
        ("BPE", { $0.trainer[3] = nil }),
        ("byte fallback", { $0.trainer[35] = 0 }),
        ("byte fallback", { $0.pieces.remove(at: 100) }),
        ("no space as suffix", { $0.trainer[24] = 1 }),
        ("no normalisation", { $0.charsmap = [1, 2, 3] }),
        ("no normalisation", { $0.denormalizerCharsmap = [1] }),
        ("no dummy prefix", { $0.normalizer[3] = nil }),
        ("no removal of spaces", { $0.normalizer[4] = nil }),
        ("escaped spaces", { $0.normalizer[5] = 0 }),
        ("only pieces that were learnt", { $0.pieces[270].kind = 4 }),
        ("only pieces that were learnt", { $0.pieces[270].kind = 5 }),
        ("reserved pieces that text cannot spell", { $0.pieces[270].bytes = Array("<s>".utf8) }),
        ("reserved pieces that text cannot spell", { $0.pieces[1].bytes = Array("é".utf8) }),
        ("no piece over two words", { $0.pieces[270].bytes = Array("a▁b".utf8) }),
        ("pieces of at most 64 bytes", { $0.pieces[270].bytes = [UInt8](repeating: 97, count: 65) }),
        ("a control piece <|end|>", { $0.pieces[6].bytes = Array("<|fin|>".utf8) }),
        ("a control piece <s>", { $0.pieces[1].bytes = Array("<t>".utf8) }),
        (
            "at most 65536 pieces",
            { model in
                model.pieces += (0..<65_536).map { HandmadeModel.Piece(bytes: Array("w\($0)".utf8)) }
            }
        ),
    ]

    @Test(arguments: faults.indices)
    func foreignModelsAreRefusedWithTheReason(fault: Int) {
        let (rule, change) = Self.faults[fault]
        var model = HandmadeModel(Self.learnt)
        change(&model)
        do {
            _ = try Tokenizer(model.bytes)
            Issue.record("a model without \(rule) was taken")
        } catch TokenizerError.foreign(let rules) {
            #expect(rules.contains(rule))
        } catch {
            Issue.record("a model without \(rule) was refused with: \(error)")
        }
    }

    static let damages: [@Sendable (inout HandmadeModel) -> Void] = [
        { $0.pieces = [] },
        { $0.pieces[270].bytes = [] },
        { $0.pieces[270].bytes = [0xFF] },
        { $0.pieces[270].bytes = $0.pieces[271].bytes },
        { $0.pieces[0].kind = 3 },
        { $0.pieces[1].kind = 2 },
        { $0.pieces[270].kind = 7 },
        { $0.pieces[270].score = .nan },
    ]

    @Test(arguments: damages.indices)
    func damagedModelsAreRefused(damage: Int) {
        var model = HandmadeModel(Self.learnt)
        Self.damages[damage](&model)
        let bytes = model.bytes
        #expect(throws: TokenizerError.damaged(bytes: bytes.count)) { try Tokenizer(bytes) }
    }

    @Test func filesThatAreNoneOrTooLargeAreRefused() throws {
        let missing = FileManager.default.temporaryDirectory.appending(path: "\(UUID().uuidString).model")
        #expect(throws: TokenizerError.unreadable(file: missing.lastPathComponent)) {
            try Tokenizer(contentsOf: missing)
        }
        #expect(throws: TokenizerError.self) { try Tokenizer(contentsOf: FileManager.default.temporaryDirectory) }
        let large = [UInt8](repeating: 0, count: Tokenizer.largestFile + 1)
        #expect(throws: TokenizerError.tooLarge(limit: 1 << 24)) { try Tokenizer(large) }
        try Data(large).write(to: missing)
        defer { try? FileManager.default.removeItem(at: missing) }
        #expect(throws: TokenizerError.tooLarge(limit: 1 << 24)) { try Tokenizer(contentsOf: missing) }
    }

    /// Whatever the reader takes must work: no trap, and no text that changes.
    @Test func cutAndGarbledFilesAreRefusedOrWork() throws {
        let whole = HandmadeModel(Self.learnt).bytes
        for size in stride(from: 0, to: whole.count, by: 7) {
            #expect(throws: TokenizerError.self) { try Tokenizer(Array(whole[..<size])) }
        }
        var draw = Seeded(seed: 2)
        var (taken, changed) = (0, 0)
        for number in 0..<600 {
            var bytes = whole
            for _ in 0...Int.random(in: 0..<3, using: &draw) {
                let place = Int.random(in: (number % 3 == 0 ? 0 : whole.count - 300)..<bytes.count - 1, using: &draw)
                switch Int.random(in: 0..<4, using: &draw) {
                case 0: bytes[place] = UInt8.random(in: 0...255, using: &draw)
                case 1: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &draw)
                case 2: bytes.remove(at: place)
                default: bytes.insert(UInt8.random(in: 0...255, using: &draw), at: place)
                }
            }
            guard let tokenizer = try? Tokenizer(bytes) else { continue }
            // Without a piece for it, a space becomes U+2581.
            guard tokenizer.encode(" ").count == 1 else { continue }
            taken += 1
            let text = randomText(&draw) + "hello  he\u{301}llo\r\n aaaa"
            if try Array(tokenizer.decode(tokenizer.encode(text)).utf8) != Array(text.utf8) { changed += 1 }
            _ = try tokenizer.decode(Array(0..<Int32(tokenizer.vocabulary)))
        }
        #expect(taken > 40)
        #expect(changed == 0)
    }

    private func randomText(_ draw: inout Seeded) -> String {
        let kinds: [ClosedRange<UInt32>] = [
            32...126, 0...31, 0x61...0x68, 0x20...0x21, 0x80...0x7FF, 0x2580...0x2582, 0x800...0xD7FF,
            0xE000...0x10FFFF,
        ]
        var scalars = String.UnicodeScalarView()
        for _ in 0..<Int.random(in: 0..<30, using: &draw) {
            let value = kinds.randomElement(using: &draw).map { UInt32.random(in: $0, using: &draw) }
            if let scalar = value.flatMap(Unicode.Scalar.init) { scalars.append(scalar) }
        }
        return String(scalars)
    }
}

/// SplitMix64: the same numbers in every run.
private struct Seeded: RandomNumberGenerator {
    var state: UInt64

    init(seed: UInt64) {
        state = seed
    }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ z >> 30) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ z >> 27) &* 0x94D0_49BB_1331_11EB
        return z ^ z >> 31
    }
}
