#if COREML_STUB
    import CoreMLStub
    import Foundation
    import TRMCore
    import Testing

    @testable import TRMCoreML
    @testable import TRMDemoModel

    /// Exports in the app, run by the stand-in for Core ML.
    @MainActor @Suite struct CoreMLTests {
        let desk: Desk
        init() throws { desk = try Desk() }

        private func imported(_ export: ExportFolder) async -> AppModel {
            let app = AppModel(places: desk.places) { _ in }
            app.open()
            app.add(export.folder)
            await app.importing.settle()
            return app
        }

        @Test func anExportIsImportedAndWrites() async throws {
            let app = await imported(try ExportFolder(desk))
            #expect(app.importing.phase == .added("Tiny"))
            let writing = app.writing
            #expect(writing.phase == .ready && writing.engine?.place == "Core ML, CPU and Neural Engine")
            #expect(writing.engine?.notes.isEmpty == true)
            #expect(writing.depths == [1, 2] && writing.temperature == 0.7)
            #expect(writing.engine?.sampling.repetitionPenalty == 1.1)
            writing.prompt = "x"
            writing.settings.maxTokens = 16
            app.write()
            await writing.settle()
            guard case .stopped = writing.phase else {
                Issue.record("\(writing.phase)")
                return
            }
            #expect(writing.page.tokens > 0)
        }

        @Test func unitsThatFailAreNamed() async throws {
            let app = await imported(try ExportFolder(desk) { $0.refused = ["cpuAndNeuralEngine"] })
            #expect(app.writing.engine?.place == "Core ML, CPU and GPU")
            #expect(app.writing.engine?.notes.count == 1)
        }

        @Test func anExportThatRunsNowhereLeavesNothing() async throws {
            let app = await imported(
                try ExportFolder(desk) { $0.wrong = ["cpuAndNeuralEngine", "cpuAndGPU", "cpuOnly"] })
            #expect(app.importing.status.contains("runs on no processor"))
            #expect(desk.kept.isEmpty && app.importing.models.isEmpty && app.writing.phase == .noModel)
        }

        @Test func aDamagedExportLeavesNothing() async throws {
            let export = try ExportFolder(desk)
            try Data("[]".utf8).write(to: export.folder.appendingPathComponent("Tiny.mlpackage/Manifest.json"))
            let app = await imported(export)
            #expect(
                app.importing.phase
                    == .failed(ImportError.changed("Tiny.mlpackage/Manifest.json").localizedDescription))
            #expect(desk.kept.isEmpty)
        }

        @Test func aModelThatWasThereOutlivesAFailedImport() async throws {
            let export = try ExportFolder(desk)
            _ = try export.imported()
            let app = AppModel(
                places: desk.places, load: { _, _ in throw EngineError.noSelfTest }, announce: { _ in })
            app.open()
            app.add(export.folder)
            await app.importing.settle()
            #expect(app.importing.phase == .failed(EngineError.noSelfTest.localizedDescription))
            #expect(app.importing.models.map(\.name) == ["Tiny"])
        }

        @Test func anotherTokenizersTokensAreRefused() async throws {
            let export = try ExportFolder(desk)
            let file = export.folder.appendingPathComponent(Manifest.fileName)
            let text = try String(contentsOf: file, encoding: .utf8)
            let changed = text.replacingOccurrences(of: #""pad": 3"#, with: #""pad": 99"#)
            #expect(changed != text)
            try Data(changed.utf8).write(to: file)
            let app = await imported(export)
            #expect(app.importing.phase == .failed(LibraryError.otherTokenizer.localizedDescription))
            #expect(desk.kept.isEmpty)
        }

        @Test func detailsComeFromTheManifest() throws {
            let facts = try ExportFolder(desk).imported().facts
            #expect(Set(facts.map(\.id)).count == facts.count && facts.allSatisfy { !$0.value.isEmpty })
            #expect(facts.contains(Fact("Parameters stored", "4.0 million")))
            #expect(facts.contains(Fact("Depths", "1, 2")) && facts.contains(Fact("Weights", "8 bits")))
        }
    }
#endif
