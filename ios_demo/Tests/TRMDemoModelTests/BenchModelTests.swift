import Foundation
import TRMBenchKit
import TRMCore
import TRMCoreML
import Testing

@testable import TRMDemoModel

@MainActor @Suite struct BenchModelTests {
    let desk: Desk
    let bench: BenchModel

    init() throws {
        desk = try Desk()
        bench = BenchModel(folder: desk.root.appendingPathComponent("Benchmarks"))
    }

    @Test func theReferenceEngineIsMeasured() async throws {
        let model = try desk.library.add(try desk.modelFolder())
        bench.run(model, depth: 2)
        #expect(bench.isRunning)
        await bench.settle()
        #expect(bench.phase == .finished && bench.rows.map(\.name) == ["Reference engine, CPU"])
        #expect(bench.rows[0].sentence.contains("tokens per second"))
        let file = try #require(bench.files.first)
        #expect(bench.files.count == 1 && file.lastPathComponent == "Fox-reference-depth2.json")
        let report = try BenchReport(json: try Data(contentsOf: file))
        #expect(report.tool.name == "TRMDemo" && report.tool.runtime == "reference")
        #expect(report.model.recursions == 2 && report.model.name == "Fox" && report.trials.count == 3)
        #expect(report.config.promptTokens == 8 && report.config.newTokens == 16)
        #expect(report.model.manifestSha256.count == 64)
    }

    @Test func aReportThatDoesNotCountSaysWhy() async throws {
        bench.run(try desk.library.add(try desk.modelFolder()), depth: 1)
        await bench.settle()
        guard case .measured(let report) = try #require(bench.rows.first).outcome else {
            Issue.record("\(bench.rows)")
            return
        }
        for reason in report.summary.invalidBecause ?? [] { #expect(bench.rows[0].sentence.contains(reason)) }
    }

    /// Two ways to run a model, of which the second never ends.
    private func endless(_ reached: Log<Int>) throws -> BenchModel {
        BenchModel(folder: desk.root.appendingPathComponent("Benchmarks")) { model in
            let first = BenchSubject.all(model)
            let second = BenchSubject(units: "n/a", name: "Endless") { _, _, tell in
                reached.add(1)
                tell("waiting")
                try await Task.sleep(for: .seconds(60))
                throw BenchError.noTokens
            }
            return first + [second, second]
        }
    }

    @Test func cancellingKeepsWhatWasMeasured() async throws {
        let reached = Log<Int>()
        let bench = try endless(reached)
        bench.run(try desk.library.add(try desk.modelFolder()), depth: 1)
        await eventually { bench.phase == .running("Endless: waiting") }
        bench.cancel()
        await bench.settle()
        #expect(bench.status.hasPrefix("Cancelled.") && !bench.isRunning)
        #expect(bench.rows.count == 1 && bench.files.count == 1 && reached.values.count == 1)
    }

    @Test(arguments: [(EngineCondition.background, "foreground"), (.heat(.critical), "too hot")])
    func theDeviceEndsIt(condition: EngineCondition, words: String) async throws {
        let reached = Log<Int>()
        let bench = try endless(reached)
        bench.run(try desk.library.add(try desk.modelFolder()), depth: 1)
        await eventually { reached.values.count == 1 }
        bench.handle(.memoryWarning)
        bench.handle(.heat(.serious))
        #expect(bench.isRunning)
        bench.handle(condition)
        await bench.settle()
        #expect(bench.status.contains(words))
        bench.handle(.background)
        #expect(bench.status.contains(words))
    }

    @Test func whileItMeasuresNothingIsWritten() async throws {
        let app = AppModel(places: desk.places) { _ in }
        app.open()
        app.add(try desk.modelFolder())
        await app.importing.settle()
        #expect(app.canWrite && app.canMeasure)
        app.measure()
        #expect(!app.canWrite && !app.canMeasure && !app.canChooseModel && app.writing.activity == .unloaded)
        await app.bench.settle()
        #expect(app.bench.phase == .finished && app.canWrite)
    }

    #if COREML_STUB
        @Test func everyProcessorIsMeasuredInTurn() async throws {
            let model = try ExportFolder(desk).imported()
            bench.run(model, depth: 1)
            await bench.settle()
            #expect(bench.rows.map(\.name) == ["CPU", "CPU and GPU", "CPU and Neural Engine"])
            #expect(
                bench.files.map(\.lastPathComponent) == [
                    "Tiny-cpuOnly-depth1.json", "Tiny-cpuAndGPU-depth1.json", "Tiny-cpuAndNeuralEngine-depth1.json",
                ])
            let reports = try bench.files.map { try BenchReport(json: try Data(contentsOf: $0)) }
            #expect(reports.map(\.config.computeUnits) == ["cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine"])
            #expect(reports.map { $0.load.compileMs != nil } == [true, false, false])
            #expect(reports.allSatisfy { $0.load.loadMs > 0 && $0.load.firstPredictionMs > 0 })
            #expect(reports.allSatisfy { $0.model.manifestSha256 == model.id && $0.tool.runtime == "coreml" })
            #expect(reports.allSatisfy { $0.tool.name == "TRMDemo" })
        }

        @Test func aCommandGivesItsOwnName() async throws {
            let store = ModelStore(home: desk.root.appendingPathComponent("caches"))
            let model = try store.add(try ExportFolder(desk).folder)
            let plan = try BenchPlan(promptTokens: 8, newTokens: 4, trials: 2, warmup: 0, cooldown: 0)
            let report = try await BenchSubject.coreML(model, .cpuAndGPU, tool: "trm-bench").measure(plan, 1) { _ in }
            #expect(report.tool.name == "trm-bench" && report.config.computeUnits == "cpuAndGPU")
        }

        @Test func aProcessorThatFailsIsASentence() async throws {
            bench.run(try ExportFolder(desk) { $0.refused = ["cpuAndGPU"] }.imported(), depth: 2)
            await bench.settle()
            #expect(bench.phase == .finished && bench.files.count == 2)
            guard case .failed(let sentence) = bench.rows[1].outcome else {
                Issue.record("\(bench.rows[1])")
                return
            }
            #expect(sentence.hasPrefix("CPU and GPU: "))
        }
    #endif
}
