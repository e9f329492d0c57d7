import Foundation
import Synchronization
import Testing

@testable import TRMCore

struct GeneratorTests {
    /// What a text came to.
    struct Outcome {
        var tokens: [Int32] = []
        var text = ""
        var summaries: [GenerationSummary] = []
        var reason: StopReason? { summaries.first?.reason }
    }

    /// A generator whose model wants tokens that never end a text.
    private func generator(
        context: Int = 256, seed: UInt64 = 12, piece: Int = 64, wanted: [Int32] = [], after prompt: Int = 1,
        appended: @escaping @Sendable (Int) throws -> Void = { _ in }
    ) throws -> Generator {
        Generator(codec: try LoopTests.codec.get(), pieceLength: piece) {
            let table = TableStepModel(vocabulary: 4096, context: context, depths: [1, 2], seed: seed)
            return WantingModel(table, wanted, after: prompt, appended: appended)
        }
    }

    private func outcome(_ events: AsyncThrowingStream<GenerationEvent, any Error>) async throws -> Outcome {
        var found = Outcome()
        for try await event in events {
            switch event {
            case .token(let id, let text):
                #expect(found.summaries.isEmpty)
                found.tokens.append(id)
                found.text += text
            case .finished(let summary): found.summaries.append(summary)
            }
        }
        return found
    }

    private let hundred = [Int32](repeating: 300, count: 100)
    private let greedy = GenerationSettings(maxTokens: 100, sampling: SamplingConfig(temperature: 0))

    // Stopping.

    static let causes: [(StopSignal.Cause, StopReason)] = [
        (.stopped, .stopped), (.thermal, .thermal), (.background, .background),
    ]

    @Test(arguments: causes)
    func stopKeepsWhatWasWrittenAndDeliversTheSummary(_ cause: StopSignal.Cause, _ reason: StopReason) async throws {
        let signal = StopSignal()
        let generator = try generator(wanted: hundred) { if $0 == 5 { signal.stop(cause) } }
        let found = try await outcome(generator.generate([1], greedy, stop: signal))
        #expect(found.tokens == [300, 300, 300, 300, 300])
        #expect(found.summaries.map(\.reason) == [reason])
        #expect(found.summaries.first?.tokens == 5)
    }

    @Test func textHeldBackIsWrittenWhenItIsStopped() async throws {
        let signal = StopSignal()
        let codec = try LoopTests.codec.get()
        let bytes = [UInt8]("abc\u{1F600}".utf8).prefix(5).map { Int32($0) + 7 }  // half a character at the end
        let generator = try generator(wanted: bytes) { if $0 == 5 { signal.stop() } }
        var settings = greedy
        settings.stop = ["bcd", "c\u{FFFD}\u{FFFD}\u{FFFD}x"]
        let found = try await outcome(generator.generate([codec.bos], settings, stop: signal))
        #expect((found.text, found.reason) == ("abc\u{FFFD}\u{FFFD}", .stopped))
    }

    @Test func stopIsHeardBetweenThePiecesOfALongPrompt() async throws {
        let signal = StopSignal()
        let positions = Mutex<[Int]>([])
        let generator = try generator(piece: 10) { at in
            positions.withLock { $0.append(at) }
            if at == 30 { signal.stop() }
        }
        let found = try await outcome(generator.generate(Array(repeating: 300, count: 95), greedy, stop: signal))
        #expect(positions.withLock { $0 } == [10, 20, 30])
        #expect(found.tokens.isEmpty && found.text.isEmpty)
        let summary = try #require(found.summaries.first)
        #expect((summary.reason, summary.promptTokens, summary.tokens) == (.stopped, 95, 0))
        #expect(summary.prefillNanoseconds == nil && summary.firstNanoseconds == nil)
        #expect(summary.tokenNanoseconds.isEmpty)
    }

    @Test func stopBeforeTheStartReadsNothing() async throws {
        let signal = StopSignal()
        signal.stop(.background)
        signal.stop(.stopped)  // the first cause stays
        let generator = try generator { _ in Issue.record("the model was asked") }
        #expect(try await outcome(generator.generate([1], greedy, stop: signal)).reason == .background)
    }

    @Test func aReasonInTheTextComesBeforeAStop() async throws {
        let signal = StopSignal()
        let generator = try generator(wanted: [300, 2]) { if $0 == 2 { signal.stop() } }
        #expect(try await outcome(generator.generate([1], greedy, stop: signal)).reason == .end)
    }

    @Test(.timeLimit(.minutes(1)))
    func aTextThatNobodyReadsAnyMoreIsNotWrittenOn() async throws {
        let steps = Atomic<Int>(0)
        let open = Atomic<Bool>(false)
        let generator = try generator(context: 5000, wanted: Array(repeating: 300, count: 4000)) { at in
            steps.store(at, ordering: .releasing)
            while at == 3, !open.load(ordering: .acquiring) { usleep(100) }
        }
        var settings = greedy
        settings.maxTokens = 4000
        do {
            var events = generator.generate([1], settings).makeAsyncIterator()
            #expect(try await events.next() == .token(300, text: "\(try text(of: 300))"))
        }
        open.store(true, ordering: .releasing)
        try await generator.prepare()  // waits its turn
        #expect(steps.load(ordering: .acquiring) < 4000)
    }

    private func text(of id: Int32) throws -> String {
        String(decoding: try LoopTests.codec.get().pieceBytes[Int(id)], as: UTF8.self)
    }

    // One text after another.

    @Test func textsAskedForAtOnceAreWrittenAsIfAlone() async throws {
        let generator = try generator()
        let settings = GenerationSettings(maxTokens: 12, sampling: SamplingConfig(topK: 0, seed: 4))
        let prompts: [[Int32]] = [[1, 300], [1, 301, 302], [1]]
        var alone: [[Int32]] = []
        for prompt in prompts { alone.append(try await outcome(generator.generate(prompt, settings)).tokens) }
        let streams = prompts.map { generator.generate($0, settings) }
        for (stream, tokens) in zip(streams, alone) { #expect(try await outcome(stream).tokens == tokens) }
        #expect(Set(alone).count == 3)
    }

    @Test func textGivesTheTokensOfItsIds() async throws {
        let generator = try generator()
        let settings = GenerationSettings(maxTokens: 5)
        let ids = try LoopTests.codec.get().encode("Once upon a time")
        let expected = try await outcome(generator.generate([1] + ids, settings))
        let found = try await outcome(generator.generate("Once upon a time", settings))
        #expect(found.tokens == expected.tokens)
        #expect(found.summaries.first?.promptTokens == 5)
    }

    @Test(arguments: [1, 2, 7, 64, 100])
    func piecesOfThePromptDoNotChangeTheText(_ piece: Int) async throws {
        let prompt: [Int32] = [1] + (300..<398)
        let whole = try await outcome(generator(piece: 99).generate(prompt, GenerationSettings(maxTokens: 4)))
        let found = try await outcome(generator(piece: piece).generate(prompt, GenerationSettings(maxTokens: 4)))
        #expect(found.tokens == whole.tokens)
    }

    @Test func modelIsMadeOnceAndAgainAfterUnload() async throws {
        let made = Atomic<Int>(0)
        let generator = Generator(codec: try LoopTests.codec.get()) {
            made.add(1, ordering: .relaxed)
            return TableStepModel(vocabulary: 4096, context: 64, depths: [1, 2])
        }
        let limits = try await generator.prepare()
        #expect(limits == ModelLimits(vocabulary: 4096, context: 64, depths: [1, 2]))
        let first = try await outcome(generator.generate([1], greedy))
        #expect(made.load(ordering: .relaxed) == 1)
        await generator.unload()
        #expect(try await outcome(generator.generate([1], greedy)).tokens == first.tokens)
        #expect(made.load(ordering: .relaxed) == 2)
    }

    @Test func timesComeFromTheClockThatWasGiven() async throws {
        let ticks = Atomic<Int>(0)  // start, prefill, then one for each token
        let now: @Sendable () -> Duration = { .milliseconds(ticks.add(1, ordering: .relaxed).newValue * 10) }
        let generator = Generator(codec: try LoopTests.codec.get(), now: now) {
            TableStepModel(vocabulary: 4096, context: 64, depths: [1, 2], seed: 1)
        }
        var settings = greedy
        settings.maxTokens = 4
        let summary = try #require(try await outcome(generator.generate([1], settings)).summaries.first)
        #expect((summary.prefillNanoseconds, summary.firstNanoseconds) == (10_000_000, 20_000_000))
        #expect(summary.tokenNanoseconds == [10_000_000, 10_000_000, 10_000_000])
        #expect(summary.tokensPerSecond == 100)
        #expect(summary.depth == 2)
    }

    // What is refused.

    private func error(_ prompt: [Int32], _ settings: GenerationSettings, _ generator: Generator) async
        -> GenerationError?
    {
        await #expect(throws: GenerationError.self) { _ = try await outcome(generator.generate(prompt, settings)) }
    }

    @Test(arguments: [0, 64, 65, 1000])
    func aPromptMustLeaveRoomInTheContext(_ length: Int) async throws {
        let found = await error(Array(repeating: 1, count: length), greedy, try generator(context: 64))
        #expect(found == .prompt(tokens: length, context: 64))
    }

    @Test func settingsThatDoNotSuitTheModelAreRefused() async throws {
        let generator = try generator()
        for depth in [-1, 0, 3] {
            let found = await error([1], GenerationSettings(depth: depth), generator)
            #expect(found == .depth(found: depth, allowed: [1, 2]))
        }
        #expect(await error([1, -1], greedy, generator) == .token(id: -1, vocabulary: 4096, place: "prompt"))
        #expect(await error([4096], greedy, generator) == .token(id: 4096, vocabulary: 4096, place: "prompt"))
        #expect(await error([1], GenerationSettings(maxTokens: 0), generator) != nil)
        #expect(await error([1], GenerationSettings(stop: ["a", ""]), generator) != nil)
        #expect(await error([1], GenerationSettings(sampling: SamplingConfig(topP: 2)), generator) != nil)
        let other = Generator(codec: try LoopTests.codec.get()) { TableStepModel(vocabulary: 320, context: 64) }
        let found = await error([1], greedy, other)
        #expect(found == .vocabularies(expected: 4096, found: 320, place: "model"))
    }

    @Test func anErrorOfTheModelEndsTheTextAndTheNextIsWritten() async throws {
        struct Broken: Error {}
        let broken = Atomic<Bool>(true)
        let generator = try generator(wanted: hundred) {
            if $0 == 4, broken.exchange(false, ordering: .relaxed) { throw Broken() }
        }
        var tokens = 0
        await #expect(throws: Broken.self) {
            for try await _ in generator.generate([1], greedy) { tokens += 1 }
        }
        #expect(tokens == 3)
        #expect(try await outcome(generator.generate([1], greedy)).tokens == hundred)
    }

    @Test func scoresThatAreNoNumbersAreNamed() async throws {
        final class Ill: StepModel {
            let (vocabulary, context, depths, position) = (4096, 64, [1], 0)
            func reset(depth: Int) {}
            func append(_ tokens: [Int32]) -> [Float] { (0..<4096).map { $0 == 17 ? .nan : 0 } }
        }
        let found = await error([1], greedy, Generator(codec: try LoopTests.codec.get()) { Ill() })
        #expect(found?.errorDescription?.contains("must be numbers, got nan for token 17") == true)
    }
}

struct TableStepModelTests {
    @Test func everythingBeforeChangesTheScores() throws {
        let model = TableStepModel(vocabulary: 40, context: 8, depths: [1, 2], seed: 3)
        func scores(_ depth: Int, _ pieces: [Int32]...) throws -> [Float] {
            try model.reset(depth: depth)
            return try pieces.reduce([]) { try model.append($1) }
        }
        let base = try scores(1, [1, 2, 3])
        #expect(try scores(1, [1], [2, 3]) == base && scores(1, [1, 2], [3]) == base)
        for other in [[1, 3, 2], [2, 3], [1, 2], [1, 2, 3, 3], [0, 1, 2, 3], [1, 2, 4]] as [[Int32]] {
            #expect(try scores(1, other) != base)
        }
        #expect(try scores(2, [1, 2, 3]) != base)
        #expect(base.count == 40 && base.allSatisfy { -8..<8 ~= $0 } && Set(base).count == 40)
        #expect(model.position == 3)
    }

    @Test func whatIsNoTextIsRefused() throws {
        let model = TableStepModel(vocabulary: 40, context: 4)
        #expect(throws: GenerationError.depth(found: 2, allowed: [1])) { try model.reset(depth: 2) }
        try model.reset(depth: 1)
        _ = try model.append([1, 2])
        for count in [0, 3] {
            #expect(throws: GenerationError.room(position: 2, added: count, context: 4)) {
                try model.append(Array(repeating: 1, count: count))
            }
        }
        for id: Int32 in [-1, 40] {
            #expect(throws: GenerationError.token(id: Int(id), vocabulary: 40, place: "text")) {
                try model.append([id])
            }
        }
        _ = try model.append([39, 0])
        #expect(model.position == 4)
    }
}
