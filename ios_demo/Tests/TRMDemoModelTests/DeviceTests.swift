import TRMCore
import TRMCoreML
import Testing

@testable import TRMDemoModel

/// What memory, heat and leaving the foreground do to the writing screen.
extension WritingModelTests {
    /// Ready to write; a text waits at its fourth token for the gate.
    private func waiting(_ gate: Gate) async -> WritingModel {
        let model = await ready { if $0 == 3 { gate.wait() } }
        model.write()
        await eventually { model.page.tokens >= 1 }
        return model
    }

    private var made: Int { letters.log.values.count { $0 == "made" } }

    @Test func aMemoryWarningUnloadsAnIdleModel() async {
        let model = await ready()
        #expect(model.activity == .idle && made == 1)
        model.handle(.memoryWarning)
        #expect(model.activity == .unloaded && model.phase == .ready && model.canWrite)
        await model.engine?.generator.unload()  // comes after the one under way
        model.write()
        #expect(model.phase == .preparing && model.activity == .loading)
        await model.settle()
        #expect(made == 2 && model.phase == .stopped(.length) && model.page.tokens == 26)
    }

    @Test func aMemoryWarningWhileWritingUnloadsAfterTheText() async {
        let gate = Gate()
        let model = await waiting(gate)
        model.handle(.memoryWarning)
        #expect(model.phase == .writing)
        gate.open()
        await model.settle()
        #expect(model.phase == .stopped(.length) && model.page.tokens == 26 && model.activity == .unloaded)
    }

    @Test(arguments: [(EngineCondition.background, StopReason.background), (.heat(.critical), .thermal)])
    func aTextIsStoppedForHeatAndInTheBackground(condition: EngineCondition, reason: StopReason) async {
        let gate = Gate()
        let model = await waiting(gate)
        model.handle(condition)
        gate.open()
        await model.settle()
        #expect(model.phase == .stopped(reason) && model.page.text == "Once upon a timeabcd")
        #expect(speaker.said.count == 1)
    }

    @Test func heatIsToldAndTakenBack() async {
        let model = await ready()
        #expect(model.warning == nil)
        model.handle(.heat(.serious))
        #expect(model.warning?.contains("hot") == true && model.phase == .ready)
        model.handle(.heat(.nominal))
        #expect(model.warning == nil)
    }

    @Test(arguments: [(EngineCondition.background, "interrupted"), (.heat(.critical), "too hot")])
    func loadingIsInterruptedAndGoneOnWith(condition: EngineCondition, words: String) async {
        let (load, log) = (letters.load(), Log<Int>())
        let model = WritingModel(
            file: desk.settings,
            load: { model, units in
                log.add(1)
                if log.values.count == 1 { try await Task.sleep(for: .seconds(60)) }
                return try await load(model, units)
            }, announce: speaker.say)
        model.use(letters.model)
        await eventually { log.values.count == 1 }
        model.handle(condition)
        await model.settle()
        #expect(model.status.contains(words) && model.canRetry)
        model.resume()  // of the background alone; a hot device is left to cool
        await model.settle()
        #expect((model.phase == .ready) == (condition == .background))
    }
}
