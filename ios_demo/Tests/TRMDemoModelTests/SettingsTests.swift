import Foundation
import TRMCoreML
import Testing

@testable import TRMDemoModel

@MainActor @Suite struct SettingsTests {
    let desk: Desk
    init() throws { desk = try Desk() }

    private func writing() throws -> WritingModel {
        WritingModel(file: desk.settings, load: try Letters().load()) { _ in }
    }

    @Test func settingsOutliveTheApp() throws {
        let model = try writing()
        model.settings.depth = 2
        model.temperature = 0.35
        model.settings.seed = .max
        model.settings.units = .cpuOnly
        model.settings.mode = .words
        let other = try writing()
        #expect(other.settings == model.settings && other.temperature == 0.35 && other.settings.seed == .max)
    }

    @Test func whatIsWrittenIsNoPartOfThem() throws {
        let model = try writing()
        (model.prompt, model.words) = ("A secret", "hidden")
        model.settings.seed = 7
        let file = try String(contentsOf: desk.root.appendingPathComponent("settings.json"), encoding: .utf8)
        #expect(file.contains("\"seed\" : 7") && !file.contains("secret") && !file.contains("hidden"))
        #expect(desk.paths(in: "") == ["settings.json"])
    }

    @Test(arguments: ["", "{", "[]", #"{"seed": -1}"#]) func aDamagedFileIsThatOfANewApp(content: String) throws {
        try Data(content.utf8).write(to: desk.root.appendingPathComponent("settings.json"))
        #expect(try writing().settings == WritingSettings())
    }

    @Test func valuesOutOfRangeAreBroughtIntoIt() throws {
        var settings = WritingSettings()
        (settings.depth, settings.temperature, settings.maxTokens) = (0, 7, 1)
        desk.settings.save(settings)
        let found = desk.settings.load()
        #expect(found.depth == nil && found.temperature == nil && found.maxTokens == 16)
    }

    @Test func aDiskThatTakesNoFileIsNoObstacle() throws {
        try Data().write(to: desk.root.appendingPathComponent("taken"))
        let file = SettingsFile(desk.root.appendingPathComponent("taken/settings.json"))
        file.save(WritingSettings())
        #expect(file.load() == WritingSettings())
    }

    @Test func aDepthThatTheModelLacksIsItsDeepest() async throws {
        let model = try writing()
        model.settings.depth = 9
        model.use(try Letters().model)
        await model.settle()
        #expect(model.depth == 3)
    }

    @Test(arguments: [
        ("17", 17), ("", 0), (" 4x2 ", 42), ("18446744073709551615", UInt64.max), ("18446744073709551616", 5),
    ])
    func aSeedIsTyped(text: String, seed: UInt64) throws {
        let model = try writing()
        model.settings.seed = 5
        model.seedText = text
        #expect(model.settings.seed == seed && model.seedText == (seed == 0 ? "" : "\(seed)"))
    }
}
