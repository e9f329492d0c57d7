import Foundation
import Testing

@testable import TRMBenchKit

@Suite struct BenchRunnerTests {
    let plan: BenchPlan

    init() throws {
        plan = try BenchPlan(promptTokens: 3, newTokens: 4, trials: 2, warmup: 1, cooldown: 5, seed: 1)
    }

    @Test func aRunWarmsUpReadsThePromptAtOnceAndPausesBetweenTrials() async throws {
        let log = Log()
        _ = try await BenchRunner.still(plan, log: log).run { RuleModel(log: log) }
        let text = ["reset 2", "append 3", "append 1", "append 1", "append 1"]
        #expect(log.lines == ["reset 2", "append 3", "append 1"] + text + text + ["sleep 5.0"] + text)
    }

    @Test func timesAreThoseOfTheClock() async throws {
        let measured = try await BenchRunner.still(plan).run { RuleModel() }
        #expect(measured.trials.count == 2)
        for trial in measured.trials {
            #expect(trial.prefillNs == 1_000_000 && trial.ttftNs == 2_000_000)
            #expect(trial.tpotNs == [1_000_000, 1_000_000, 1_000_000])
            #expect(trial.stopReason == "length" && trial.memoryPeakBytes == 1000)
        }
        #expect(measured.load.loadMs == 1 && measured.load.firstPredictionMs == 1 && measured.sustained == nil)
        let summary = try BenchReport.of(measured, plan: plan).summary
        #expect(summary.decodeTokensPerS == 1000 && summary.prefillTokensPerS == 3000)
        #expect(summary.ttftMs.p50 == 2 && summary.tpotMs.n == 6 && summary.valid)
    }

    @Test func theHashIsThatOfTheTokensAsLittleEndianInt32() async throws {
        // Token 3 follows a text of 3 tokens, then 4, 5 and 6.
        let measured = try await BenchRunner.still(plan).run { RuleModel() }
        let wanted = "ba7c5ee6e0192fdfe80274584650a2fb8dae9213bd63ae7b31fe4d088074cb83"
        #expect(measured.trials.map(\.tokensSha256) == [wanted, wanted])
    }

    @Test(arguments: [Float.nan, .infinity]) func scoresThatAreNoNumbersEndATrial(bad: Float) async throws {
        let measured = try await BenchRunner.still(plan).run { RuleModel { id, at in at == 4 && id == 2 ? bad : 0 } }
        #expect(measured.trials.map(\.stopReason) == ["not_finite", "not_finite"])
        let summary = try BenchReport.of(measured, plan: plan).summary
        #expect(summary.invalidBecause?.first == "trial 1 stopped after 2 of 4 tokens: not_finite")
        #expect(!summary.valid)
    }

    @Test func noNumbersAtAllAreNoMeasurement() async throws {
        let measured = try await BenchRunner.still(plan).run { RuleModel { _, _ in .nan } }
        #expect(throws: BenchError.noTokens) { try BenchReport.of(measured, plan: plan) }
    }

    @Test func whyARunDoesNotCountIsTold() async throws {
        let same = try await BenchRunner.still(plan).run { RuleModel() }
        func reasons(_ report: BenchReport) -> [String]? { report.summary.invalidBecause }
        #expect(try reasons(.of(same, plan: plan)) == [])
        #expect(
            try reasons(.of(same, plan: plan, build: "debug")) == ["a debug build is slow; build with -c release"])
        #expect(
            try reasons(.of(same, plan: plan, simulator: true)) == ["a simulator is not the device that it shows"])
        #expect(try reasons(.of(same, plan: plan, lowPower: true)) == ["Low Power Mode was on"])
        let clock = StepClock(step: 1)
        let other = try await BenchRunner.still(plan).run { RuleModel { _, _ in Float(clock.look() * 7919 % 101) } }
        #expect(try reasons(.of(other, plan: plan)) == ["greedy trials must make the same tokens, and did not"])
        let hot = try await BenchRunner.still(plan, thermal: { .serious }).run { RuleModel() }
        let state = "ran on a machine whose thermal state was serious"
        #expect(try reasons(.of(hot, plan: plan)) == ["trial 1 \(state)", "trial 2 \(state)"])
    }

    @Test func aHotDeviceIsWaitedForAndNotForEver() async throws {
        let (log, looks) = (Log(), StepClock(step: 1))
        let cooling: @Sendable () -> Thermal = { looks.look() <= 3 ? .fair : .nominal }
        _ = try await BenchRunner.still(plan, log: log, thermal: cooling).run { RuleModel() }
        #expect(log.lines == ["sleep 1.0", "sleep 1.0", "sleep 1.0", "sleep 5.0"])
        let always = Log()
        _ = try await BenchRunner.still(plan, log: always, thermal: { .critical }).run { RuleModel() }
        #expect(always.lines.count == 3 * 60 + 1)
    }

    @Test func aTextThatDoesNotFitIsRefused() async throws {
        let wanted = "Prompt and new tokens must fit the context of 6, got 3 and 4."
        let error = await #expect(throws: BenchError.self) {
            try await BenchRunner.still(plan).run { RuleModel(context: 6) }
        }
        #expect(error?.localizedDescription == wanted)
        _ = try await BenchRunner.still(plan).run { RuleModel(context: 7) }
    }

    @Test func aCancelledRunEnds() async throws {
        let task = Task {
            try await BenchRunner.still(plan).run {
                withUnsafeCurrentTask { $0?.cancel() }
                return RuleModel()
            }
        }
        await #expect(throws: CancellationError.self) { try await task.value }
    }

    @Test func sustainedWritingTellsSpeedByWindows() async throws {
        let plan = try BenchPlan(promptTokens: 3, newTokens: 4, trials: 1, warmup: 0, cooldown: 0, sustained: 95)
        let measured = try await BenchRunner.still(plan, step: 1_000_000_000).run { RuleModel() }
        let found = try #require(measured.sustained)
        #expect(found.windows.map(\.seconds) == [10, 10, 10, 10, 10, 10, 10, 10, 10, 5])
        #expect(found.windows.map(\.tokens) == [10, 10, 10, 10, 10, 10, 10, 10, 10, 5])
        #expect(found.seconds == 95 && found.firstTokensPerS == 1 && found.lastTokensPerS == 1)
    }

    @Test func theFirstAndTheLastSpeedAreOfTheirWindows() {
        let windows = (1...12).map { Sustained.Window(tokens: 10 * $0, seconds: 10, thermal: .fair) }
        let found = Sustained(seconds: 120, windows: windows)
        #expect(found.firstTokensPerS == 2 && found.lastTokensPerS == 9.5)
        let long = Sustained(
            seconds: 200, windows: [1, 2].map { .init(tokens: 100 * $0, seconds: 100, thermal: .fair) })
        #expect(long.firstTokensPerS == 1 && long.lastTokensPerS == 2)
    }

    @Test(arguments: [
        (0, 2, 1, 0, 0.0), (1, 1, 1, 0, 0), (1, 2, 0, 0, 0), (1, 2, 1, -1, 0), (1, 2, 1, 0, -1), (1, 2, 1, 0, .nan),
        (1 << 21, 2, 1, 0, 0),
    ]) func aPlanThatCannotBeIsRefused(prompt: Int, new: Int, trials: Int, warmup: Int, cooldown: Double) {
        #expect(throws: BenchError.self) {
            try BenchPlan(promptTokens: prompt, newTokens: new, trials: trials, warmup: warmup, cooldown: cooldown)
        }
    }
}
