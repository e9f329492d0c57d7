import Foundation
import Observation
import TRMCore
import TRMCoreML
import Testing

@testable import TRMDemoModel

/// One after the other, since some hold a thread while they wait.
@MainActor @Suite(.serialized) struct WritingModelTests {
    let desk: Desk
    let letters: Letters
    let speaker = Speaker()

    init() throws { (desk, letters) = (try Desk(), try Letters()) }

    func writing(
        _ onStep: @escaping @Sendable (Int) throws -> Void = { _ in },
        now: @escaping @Sendable () -> Duration = sinceLaunch
    ) -> WritingModel {
        WritingModel(file: desk.settings, load: letters.load(onStep: onStep), now: now, announce: speaker.say)
    }

    /// Ready to write, 26 letters.
    func ready(
        _ onStep: @escaping @Sendable (Int) throws -> Void = { _ in },
        now: @escaping @Sendable () -> Duration = sinceLaunch
    ) async -> WritingModel {
        let model = writing(onStep, now: now)
        model.settings.maxTokens = 26
        model.use(letters.model)
        await model.settle()
        return model
    }

    @Test func withoutAModelNothingIsWritten() async {
        let model = writing()
        #expect(model.phase == .noModel && !model.canWrite && model.status.contains("Models"))
        model.write()
        await model.settle()
        #expect(model.phase == .noModel && speaker.said.isEmpty)
    }

    @Test func aModelIsPreparedAndWritesToTheEnd() async {
        let model = writing()
        model.settings.maxTokens = 26
        model.use(letters.model)
        #expect(model.phase == .preparing && !model.canWrite)
        await model.settle()
        #expect(model.phase == .ready && model.canWrite && model.depths == [1, 2, 3])
        model.prompt = "  Once \n"
        model.write()
        #expect(model.phase == .writing && model.canStop && !model.canWrite)
        await model.settle()
        #expect(model.phase == .stopped(.length))
        #expect(model.page.text == "Onceabcdefghijklmnopqrstuvwxyz" && model.page.tokens == 26)
        #expect(model.page.firstTokenSeconds != nil && model.page.tokensPerSecond != nil)
    }

    @Test func theEndIsAnnouncedOnce() async {
        let model = await ready()
        #expect(speaker.said.isEmpty)
        model.write()
        await model.settle()
        #expect(speaker.said == ["The text has the length that was asked for. \(model.page.figures)"])
    }

    @Test func thePageChangesFewTimes() async {
        let model = await ready(now: { .zero })  // no time passes: the opening, the first token, and the end
        let log = Log<Int>()
        @Sendable func watch() {
            MainActor.assumeIsolated {
                withObservationTracking {
                    _ = model.page
                } onChange: {
                    log.add(1)
                    Task { @MainActor in watch() }
                }
            }
        }
        watch()
        model.write()
        await model.settle()
        #expect((1...3).contains(log.values.count), "\(log.values.count) changes for 26 tokens")
        #expect(model.page.tokens == 26)
    }

    @Test func stoppingKeepsAllText() async {
        let gate = Gate()
        let model = await ready { if $0 == 3 { gate.wait() } }
        model.write()
        await eventually { model.page.tokens >= 1 }
        model.stop()
        gate.open()
        await model.settle()
        #expect(model.phase == .stopped(.stopped))
        #expect(model.page.text == "Once upon a timeabcd" && model.page.tokens == 4)
        #expect(speaker.said.count == 1 && speaker.said[0].hasPrefix("Stopped."))
        #expect(model.canWrite)
    }

    @Test func aFailureKeepsAllTextAndIsASentence() async {
        let model = await ready { if $0 == 5 { throw LetterModel.Failure() } }
        model.write()
        await model.settle()
        #expect(model.phase == .failed("The letters are used up.") && model.status == "The letters are used up.")
        #expect(model.page.text == "Once upon a timeabcde")
        #expect(speaker.said == ["The letters are used up."])
        #expect(model.canWrite)
    }

    @Test func aModelThatDoesNotLoadCanBeTriedAgain() async {
        let (load, log) = (letters.load(), Log<Int>())
        let model = WritingModel(
            file: desk.settings,
            load: { model, units in
                log.add(1)
                if log.values.count == 1 { throw EngineError.noSelfTest }
                return try await load(model, units)
            }, announce: speaker.say)
        model.use(letters.model)
        await model.settle()
        #expect(model.phase == .failed(EngineError.noSelfTest.localizedDescription))
        #expect(model.canRetry && !model.canWrite)
        model.retry()
        await model.settle()
        #expect(model.phase == .ready && !model.canRetry)
    }

    @Test func theChosenDepthAndLengthAreUsed() async {
        let model = await ready()
        #expect(model.depth == 3 && model.depthPlace == 2)
        model.depthPlace = 0.2
        #expect(model.depth == 1 && model.depthName == "1 pass over each token")
        model.settings.maxTokens = 16
        model.write()
        await model.settle()
        #expect(letters.log.values.contains("reset 1") && model.page.tokens == 16)
    }

    @Test func wordsAreAskedForThroughTheChatTemplate() async throws {
        let model = await ready()
        model.settings.mode = .words
        model.words = " fox,river;  lantern "
        model.write()
        await model.settle()
        let request = "Write a story with these words: fox, river, lantern."
        let tokenizer = letters.tokenizer
        let ids = [tokenizer.bos, tokenizer.user] + tokenizer.encode(request) + [tokenizer.end, tokenizer.assistant]
        #expect(letters.log.values.contains("read \(ids)"))
        #expect(model.page.text == "abcdefghijklmnopqrstuvwxyz")
        model.words = " , "
        #expect(!model.canWrite)
    }

    @Test func anotherModelEndsTheTextBeforeIt() async {
        let gate = Gate()
        let model = await ready { if $0 == 3 { gate.wait() } }
        model.write()
        await eventually { model.page.tokens >= 1 }
        model.use(nil)
        gate.open()
        #expect(model.phase == .noModel && model.engine == nil && model.settings.model == nil)
        try? await Task.sleep(for: .milliseconds(20))
        #expect(model.phase == .noModel && speaker.said.isEmpty)
    }

    #if COREML_STUB
        @Test(arguments: [(ComputeUnits.cpuOnly, 2), (.cpuAndNeuralEngine, 1)])
        func onlyCoreMLIsLoadedAgainForOtherUnits(units: ComputeUnits, loads: Int) async throws {
            let log = Log<ComputeUnits>()
            let load = letters.load()
            let model = WritingModel(
                file: desk.settings,
                load: { model, units in
                    log.add(units)
                    return try await load(model, units)
                }, announce: speaker.say)
            model.use(try ExportFolder(desk).imported())
            await model.settle()
            model.units = units
            await model.settle()
            #expect(log.values.count == loads && log.values.last == units)
            model.use(letters.model)
            await model.settle()
            model.units = .cpuAndGPU
            await model.settle()
            #expect(log.values.count == loads + 1)
        }
    #endif
}
