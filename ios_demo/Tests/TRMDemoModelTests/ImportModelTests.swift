import Foundation
import TRMCore
import TRMCoreML
import Testing

@testable import TRMDemoModel

@MainActor @Suite struct ImportModelTests {
    let desk: Desk
    let speaker = Speaker()
    init() throws { desk = try Desk() }

    private func app(bundled: URL? = nil, load: @escaping Engine.Load = Engine.load) -> AppModel {
        AppModel(places: desk.places(bundled: bundled), load: load, announce: speaker.say)
    }

    private func write(_ app: AppModel) async {
        app.writing.settings.maxTokens = 16
        app.write()
        await app.writing.settle()
    }

    @Test func aModelFolderIsImportedAndWrites() async throws {
        let app = app()
        app.open()
        app.add(try desk.modelFolder())
        #expect(app.importing.phase == .copying(0) && !app.canChooseModel)
        await app.importing.settle()
        #expect(app.importing.phase == .added("Fox") && app.importing.models.map(\.name) == ["Fox"])
        #expect(app.writing.phase == .ready && app.writing.engine?.place == "Reference engine, CPU")
        app.writing.prompt = "x"
        await write(app)
        #expect(app.writing.page.text.hasPrefix("x") && app.writing.page.tokens > 0 && speaker.said.count == 1)
    }

    @Test func theSameSeedGivesTheSameText() async throws {
        let app = app()
        app.open()
        app.add(try desk.modelFolder())
        await app.importing.settle()
        app.writing.temperature = 1.2
        var texts: [String] = []
        for seed: UInt64 in [1, 1, 2] {
            app.writing.settings.seed = seed
            await write(app)
            texts.append(app.writing.page.text)
        }
        #expect(texts[0] == texts[1] && texts[0] != texts[2])
    }

    @Test func theLastModelIsThereAtTheNextLaunch() async throws {
        let first = app()
        first.open()
        for name in ["Fox", "Goose"] {
            first.add(try desk.modelFolder(name))
            await first.importing.settle()
        }
        #expect(first.importing.models.count == 1)  // the same model by another name
        let second = app()
        second.open()
        await second.writing.settle()
        #expect(second.writing.phase == .ready && second.writing.model?.name == "Goose")
    }

    @Test(arguments: [
        ("model.safetensors", "safetensors"), ("tokenizer.model", "tokenizer"), ("config.json", "config.json"),
    ])
    func aDamagedModelFolderLeavesNothing(file: String, words: String) async throws {
        let folder = try desk.modelFolder()
        let place = folder.appendingPathComponent(file)
        var bytes = try Data(contentsOf: place)
        bytes[bytes.count - 2] ^= 1
        try bytes.write(to: place)
        let app = app()
        app.open()
        app.add(folder)
        await app.importing.settle()
        guard case .failed(let sentence) = app.importing.phase else {
            Issue.record("\(app.importing.phase)")
            return
        }
        #expect(sentence.contains(words) && sentence.hasSuffix("."))
        #expect(desk.kept.isEmpty && app.importing.models.isEmpty && app.writing.phase == .noModel)
    }

    @Test func aLinkIsRefused() async throws {
        let folder = try desk.modelFolder()
        let file = folder.appendingPathComponent("tokenizer.model")
        try FileManager.default.removeItem(at: file)
        try FileManager.default.createSymbolicLink(
            at: file, withDestinationURL: Desk.rope.appendingPathComponent("tokenizer.model"))
        #expect(throws: ImportError.link("tokenizer.model")) { try desk.library.add(folder) }
        #expect(desk.kept.isEmpty)
    }

    @Test func aFolderWithoutAModelIsRefusedInASentence() async throws {
        let app = app()
        app.open()
        app.add(desk.root)
        await app.importing.settle()
        #expect(app.importing.status.hasPrefix("There is no model in") && desk.kept.isEmpty)
    }

    @Test func cancellingWhileItLoadsLeavesNothing() async throws {
        let reached = Log<Int>()
        let app = app { _, _ in
            reached.add(1)
            try await Task.sleep(for: .seconds(60))
            throw LibraryError.otherTokenizer
        }
        app.open()
        app.add(try desk.modelFolder())
        await eventually { reached.values.count == 1 }
        #expect(app.importing.phase == .preparing && !desk.kept.isEmpty)
        app.importing.cancel()
        await app.importing.settle()
        #expect(app.importing.phase == .idle && desk.kept.isEmpty && app.importing.models.isEmpty)
    }

    @Test func cancellingWhileItIsCopiedLeavesNothing() async throws {
        let app = app()
        app.open()
        app.add(try desk.modelFolder())
        app.importing.cancel()
        await app.importing.settle()
        #expect(app.importing.phase == .idle && desk.kept.isEmpty && app.importing.models.isEmpty)
    }

    @Test(arguments: [(EngineCondition.background, true), (.heat(.critical), true), (.memoryWarning, false)])
    func leavingTheForegroundEndsLoading(condition: EngineCondition, ends: Bool) async throws {
        let (reached, letters) = (Log<Int>(), try Letters())
        let app = app { model, units in
            reached.add(1)
            try await Task.sleep(for: .milliseconds(ends ? 60_000 : 50))
            return try await letters.load()(model, units)
        }
        app.open()
        app.add(try desk.modelFolder())
        await eventually { reached.values.count == 1 }
        app.handle(condition)
        await app.importing.settle()
        #expect((app.importing.phase == .idle) == ends && desk.kept.isEmpty == ends)
    }

    @Test func whatAnImportLeftThatEndedWithTheAppIsRemoved() throws {
        let left = desk.root.appendingPathComponent("Models/folders/.importing-x/model")
        try FileManager.default.createDirectory(at: left, withIntermediateDirectories: true)
        try Data([1]).write(to: left.appendingPathComponent("config.json"))
        #expect(desk.kept.count == 1)
        app().open()
        #expect(desk.kept.isEmpty)
    }

    @Test func modelsThatCameWithTheAppAreAddedOnce() async throws {
        let bundled = desk.root.appendingPathComponent("Model")
        try FileManager.default.createDirectory(at: bundled, withIntermediateDirectories: true)
        try Data("text".utf8).write(to: bundled.appendingPathComponent("README.md"))
        try FileManager.default.moveItem(at: try desk.modelFolder(), to: bundled.appendingPathComponent("Fox"))
        let loads = Log<Int>()
        for launch in 1...2 {
            let app = app(bundled: bundled) { model, units in
                loads.add(1)
                return try await Engine.load(model, units)
            }
            app.open()
            await app.importing.settle()
            await app.writing.settle()
            #expect(app.writing.phase == .ready && app.importing.models.map(\.name) == ["Fox"])
            #expect(loads.values.count == launch)
        }
    }

    @Test func aRemovedModelIsNoLongerUsed() async throws {
        let app = app()
        app.open()
        app.add(try desk.modelFolder())
        await app.importing.settle()
        let model = try #require(app.importing.models.first)
        app.remove(model)
        #expect(app.importing.models.isEmpty && desk.kept.isEmpty && app.writing.phase == .noModel)
    }

    @Test func progressGoesFromNothingToAll() throws {
        let shares = Log<Double>()
        _ = try desk.library.add(try desk.modelFolder()) { shares.add($0) }
        #expect(shares.values == shares.values.sorted() && shares.values.last == 1 && shares.values.count == 3)
    }

    @Test func everyFactOfAModelHasAName() throws {
        let facts = try desk.library.add(try desk.modelFolder()).facts
        #expect(Set(facts.map(\.id)).count == facts.count && facts.allSatisfy { !$0.value.isEmpty })
        #expect(facts.contains(Fact("Depths", "1, 2, 3")) && facts.contains(Fact("Context", "32 tokens")))
    }
}
