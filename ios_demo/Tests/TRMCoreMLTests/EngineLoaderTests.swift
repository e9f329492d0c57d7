#if COREML_STUB
    import CoreMLStub
    import Foundation
    import Testing

    @testable import TRMCore
    @testable import TRMCoreML

    @Suite struct EngineLoaderTests {
        private func loader(_ rig: Rig) -> EngineLoader {
            EngineLoader(manifest: rig.manifest, compiled: rig.compiled, folder: rig.root)
        }

        private func loaded(
            _ rig: Rig, _ units: ComputeUnits = .cpuAndNeuralEngine
        ) throws -> (model: any ProbedModel, report: LoadReport) {
            var report: LoadReport?
            let model = try loader(rig).load(preferring: units) { report = $0 }
            return (model, try #require(report))
        }

        @Test func theLadderGoesDown() {
            #expect(ComputeUnits.cpuAndNeuralEngine.ladder == [.cpuAndNeuralEngine, .cpuAndGPU, .cpuOnly])
            #expect(ComputeUnits.cpuAndGPU.ladder == [.cpuAndGPU, .cpuOnly])
            #expect(ComputeUnits.cpuOnly.ladder == [.cpuOnly])
        }

        @Test(arguments: ComputeUnits.allCases) func whatWorksIsUsed(units: ComputeUnits) throws {
            let rig = try Rig()
            let (model, report) = try loaded(rig, units)
            #expect(report.units == units && report.notes.isEmpty && report.duration > .zero)
            #expect(loader(rig).sentinel.killers.isEmpty)
            for name in rig.program.functions.keys { #expect(rig.calls.contains { $0.function == name }) }
            #expect(try model.append([1, 2, 3]) == rig.program.scores(after: [1, 2, 3], depth: 2))
        }

        @Test(arguments: [["cpuAndNeuralEngine"], ["cpuAndNeuralEngine", "cpuAndGPU"]])
        func unitsThatDoNotLoadAreSkipped(refused: [String]) throws {
            let report = try loaded(try Rig { $0.refused = Set(refused) }).report
            #expect(report.skipped.map(\.units.rawValue) == refused)
            #expect(report.units == (refused.count == 1 ? .cpuAndGPU : .cpuOnly))
            #expect(report.notes.count == refused.count && report.notes[0].contains("Neural Engine"))
        }

        @Test func unitsThatAnswerWronglyAreSkipped() throws {
            let report = try loaded(try Rig { $0.wrong = ["cpuAndNeuralEngine"] }).report
            #expect(report.units == .cpuAndGPU && report.notes[0].contains("self-test"))
        }

        @Test func unitsThatEndedTheAppAreNotTriedAgain() throws {
            let rig = try Rig()
            loader(rig).sentinel.begin(.cpuAndNeuralEngine)
            for _ in 0..<2 {
                let report = try loaded(rig).report
                #expect(report.units == .cpuAndGPU)
                #expect(report.skipped == [SkippedUnits(units: .cpuAndNeuralEngine, reason: .crashed)])
                #expect(loader(rig).sentinel.killers == [.cpuAndNeuralEngine])
            }
            loader(rig).sentinel.forget()
            #expect(try loaded(rig).report.units == .cpuAndNeuralEngine)
        }

        @Test func theSentinelIsThereWhileUnitsAreTried() throws {
            let rig = try Rig()
            let sentinel = CrashSentinel(folder: rig.root)
            let (manifest, compiled) = (rig.manifest, rig.compiled)
            let loader = EngineLoader(manifest: manifest, folder: rig.root) { units in
                #expect(sentinel.killers == [units])
                if units != .cpuOnly { throw EngineError.noSelfTest }
                return try CoreMLStepModel(compiled: compiled, manifest: manifest, units: units)
            }
            _ = try loader.load(preferring: .cpuAndNeuralEngine)
            #expect(sentinel.killers.isEmpty)
        }

        @Test func whereNothingWorksEveryReasonIsTold() throws {
            let rig = try Rig {
                $0.refused = ["cpuAndNeuralEngine"]
                $0.wrong = ["cpuOnly"]
            }
            loader(rig).sentinel.begin(.cpuAndGPU)
            let error = #expect(throws: EngineError.self) { _ = try loaded(rig) }
            guard case .nothingWorks(let skipped)? = error else {
                Issue.record("\(String(describing: error))")
                return
            }
            #expect(skipped.map(\.units) == ComputeUnits.allCases && skipped[1].reason == .crashed)
            let told = try #require(error?.errorDescription)
            #expect(told.contains("is refused") && told.contains("step 0") && told.contains("ended while it tried"))
        }

        @Test func aPrefillThatAnswersWronglyIsNotUsed() throws {
            let rig = try Rig { $0.wrong = ["prefill"] }
            let (model, report) = try loaded(rig)
            #expect(report.units == .cpuAndNeuralEngine && Set(report.refusals.keys) == ["prefill", "prefill_r1"])
            #expect(report.notes.count == 2)
            let ids = Array(Rig.ids[..<9])
            try model.reset(depth: 2)
            #expect(try model.append(ids) == rig.program.scores(after: ids, depth: 2))
        }

        @Test func aPrefillThatDoesNotLoadIsReported() throws {
            let report = try loaded(try Rig { $0.refused = ["prefill_r1"] }).report
            #expect(Set(report.refusals.keys) == ["prefill_r1"])
        }

        @Test func aModelThatCannotBeTestedIsRefused() throws {
            let rig = try Rig()
            let text = Rig.text(rig.program)
            let start = try #require(text.range(of: #""steps": ["#)).upperBound
            let end = try #require(text.range(of: #"]}, "files""#)).lowerBound
            rig.manifest = try Manifest(Array(text.replacingCharacters(in: start..<end, with: "").utf8))
            let reason = SkippedUnits.Reason.failed(EngineError.noSelfTest.localizedDescription)
            #expect(throws: EngineError.nothingWorks([SkippedUnits(units: .cpuOnly, reason: reason)])) {
                _ = try loader(rig).load(preferring: .cpuOnly)
            }
        }

        @Test func loadingStopsWhenItsTaskIsCancelled() async throws {
            let rig = try Rig()
            let loader = loader(rig)
            let task = Task {
                withUnsafeCurrentTask { $0?.cancel() }
                _ = try loader.load(preferring: .cpuOnly)
            }
            await #expect(throws: CancellationError.self) { try await task.value }
            #expect(loader.sentinel.killers.isEmpty && rig.calls.isEmpty)
        }

        @Test func cancellingAmidTheSelfTestBlamesNoUnits() async throws {
            let rig = try Rig()
            let (manifest, compiled, root) = (rig.manifest, rig.compiled, rig.root)
            let loader = EngineLoader(manifest: manifest, folder: root) { units in
                withUnsafeCurrentTask { $0?.cancel() }
                return try CoreMLStepModel(compiled: compiled, manifest: manifest, units: units)
            }
            let task = Task { _ = try loader.load(preferring: .cpuOnly) }
            await #expect(throws: CancellationError.self) { try await task.value }
            #expect(loader.sentinel.killers.isEmpty)
        }

        @Test func scoresThatAreNoNumbersFail() throws {
            let model = Broken()
            #expect(throws: EngineError.notNumbers(step: 0)) {
                try SelfTest(test: try Rig().manifest.selfTest).run(on: model)
            }
        }

        private final class Broken: ProbedModel {
            let (vocabulary, context, depths, refusals) = (50, 22, [2], [String: String]())
            var position = 0
            func reset(depth: Int) { position = 0 }
            func append(_ tokens: [Int32]) -> [Float] { [Float](repeating: 0, count: 49) + [.nan] }
            func warmUp(depth: Int) {}
            func refusePrefill(depth: Int, reason: String) {}
        }
    }
#endif
