import Foundation
import Testing

@testable import TRMCore

struct WordsTests {
    private func words(bias: [String] = [], ban: [String] = []) throws -> Words {
        try Words(WordsConfig(bias: bias, ban: ban), LoopTests.codec.get())
    }

    @Test func goldenIdsAreThoseBanned() throws {
        let vectors = try SamplerTests.options.get().completing
        #expect(vectors.count == 10)
        for vector in vectors {
            let pieces = vector.pieces.map(\.bytes)
            let words = Words(bans: vector.bans.map(\.bytes), pieces: pieces, lastControl: 0)
            #expect(Set(words.banned(vector.tail.bytes)).sorted() == vector.ids)
        }
    }

    @Test func bansAreKeptInBytesAcrossTokensAndControlTokens() throws {
        let words = try words(ban: ["moon", "\u{E9}"])
        let codec = try LoopTests.codec.get()
        func id(_ piece: String) throws -> Int32 {
            Int32(try #require(codec.pieceBytes.lastIndex(of: Array(piece.utf8))))
        }
        var tail = words.tail([1, 4, try id("m"), 5])
        #expect(tail.isEmpty)  // what stands before a control token is another turn
        tail = words.tail([1, try id("m")])
        #expect(words.banned(tail).contains(try id("oon")))
        tail = words.grown(tail, 3)
        #expect(words.banned(tail).contains(try id("oon")))
        #expect(!words.banned([]).contains(try id("oon")))
        #expect(!words.banned(Array("xx".utf8)).contains(codec.end))
    }

    @Test func biasesOfOneTokenAddUp() throws {
        let bias = ["#300=1.5", "#301=1e0", "#300=-0.25"]
        #expect(try words(bias: bias).biases(after: [300, 301, 300]) == [300: 1.25, 301: 1])
        #expect(try words(bias: ["==2"]).biases(after: []).values.allSatisfy { $0 == 2 })
    }

    @Test func whatCompletesARunIsUnlikelyAndBiasesStillCount() throws {
        let words = try Words(WordsConfig(bias: ["#301=2"], noRepeatNgram: 2), LoopTests.codec.get())
        #expect(words.biases(after: [300, 301, 300]) == [301: -98])
        #expect(words.biases(after: [300, 301, 300, 302, 300]) == [301: -98, 302: -100])
        #expect(words.biases(after: [300, 3, 300]) == [301: 2])  // not across a control token
        #expect(words.biases(after: [3, 300, 3]) == [301: 2])
        #expect(words.biases(after: [300]) == [301: 2] && words.biases(after: []) == [301: 2])
    }

    @Test(arguments: [-1, 1])
    func runsOfFewerThanTwoTokensAreRefused(_ run: Int) {
        let error = #expect(throws: GenerationError.self) { try WordsConfig(noRepeatNgram: run).check() }
        let line = "no_repeat_ngram must be 0, which is off, or at least 2"
        #expect(error?.errorDescription?.hasPrefix(line) == true)
    }

    @Test(arguments: [
        "moon", "=1", "moon=", "moon=x", "moon=nan", "moon=inf", "moon=101", "", "moon=0x1p3", "moon=1 ", "m=1_0",
    ])
    func malformedBiasesAreRefused(_ text: String) {
        #expect(throws: GenerationError.bias(text: text, largest: 100)) { try WordsConfig(bias: [text]).check() }
    }

    @Test func biasesForWhatIsNoTokenAreRefused() throws {
        #expect(throws: GenerationError.token(id: 4096, vocabulary: 4096, place: "biases")) {
            try words(bias: ["#4096=1"])
        }
        #expect(throws: GenerationError.token(id: .max, vocabulary: 4096, place: "biases")) {
            try words(bias: ["#99999999999999999999=1"])
        }
        let error = GenerationError.biasTokens(word: "moon river", tokens: Array(1...9))
        #expect(error.errorDescription?.hasSuffix("which is 9: 1 2 3 4 5 6 7 8 and more.") == true)
    }

    @Test(arguments: ["", "a\u{FFFD}"])
    func bansThatCannotBeKeptAreRefused(_ text: String) {
        let error = #expect(throws: GenerationError.self) { try WordsConfig(ban: [text]).check() }
        #expect(error?.errorDescription?.hasPrefix("a banned text must not be empty or hold U+FFFD") == true)
    }
}

struct StopScannerTests {
    /// A small generator of texts over few letters, so that stops come often.
    private struct Draws {
        let seed: UInt64
        var step: UInt64 = 0

        mutating func below(_ bound: Int) -> Int {
            defer { step += 1 }
            return Int(SplitMix64.number(seed: seed, step: step) % UInt64(bound))
        }

        mutating func text(_ length: Int) -> String {
            let letters = ["a", "e", "\u{301}", "\u{E9}"]
            return (0..<length).map { _ in letters[below(letters.count)] }.joined()
        }
    }

    private func place(_ stop: String, _ text: String) -> (Int, Int)? {
        let (stop, text) = (Array(stop.unicodeScalars), Array(text.unicodeScalars))
        guard stop.count <= text.count else { return nil }
        let starts = 0...(text.count - stop.count)
        return starts.first { Array(text[$0..<($0 + stop.count)]) == stop }.map { ($0 + stop.count, $0) }
    }

    @Test func textIsTheSameHoweverItWasCut() {
        var draws = Draws(seed: 1)
        var stopped = 0
        for _ in 0..<2000 {
            let text = draws.text(draws.below(20))
            let stops = (0..<draws.below(4)).map { _ in draws.text(1 + draws.below(4)) }
            let scalars = Array(text.unicodeScalars)
            let first = stops.compactMap { place($0, text) }.min(by: <)
            var scanner = StopScanner(stops)
            var (passed, at) = ("", 0)
            while at < scalars.count {
                let next = min(at + 1 + draws.below(5), scalars.count)
                var piece = String.UnicodeScalarView()
                piece.append(contentsOf: scalars[at..<next])
                passed += scanner.push(String(piece))
                at = next
            }
            passed += scanner.finish()
            let expected = scalars[..<(first?.1 ?? scalars.count)]
            #expect(Array(passed.unicodeScalars) == Array(expected), "\(text) \(stops)")
            #expect(scanner.found == (first != nil))
            stopped += first == nil ? 0 : 1
        }
        #expect(500 < stopped && stopped < 1800)
    }

    @Test func textIsHeldBackNoLongerThanItMayBecomeAStop() {
        var scanner = StopScanner(["abd", "bcd"])
        #expect("abcabde".map { scanner.push(String($0)) } == ["", "", "a", "bc", "", "", ""])
        #expect(scanner.found && scanner.finish().isEmpty)
    }
}
