import Foundation
import Observation
import TRMCoreML

/// The whole app without its views: three screens, and what they have to do with one another.
@MainActor @Observable
public final class AppModel {
    /// Where the app keeps what it keeps.
    public struct Places: Sendable {
        let settings, models, reports: URL
        let bundled: URL?

        /// - Parameters:
        ///   - support: a folder that only the app sees.
        ///   - documents: a folder that the Files app shows; reports go there.
        ///   - bundled: where models that came with the app lie.
        public init(support: URL, documents: URL, bundled: URL?) {
            settings = support.appendingPathComponent("settings.json")
            models = support.appendingPathComponent("Models", isDirectory: true)
            reports = documents.appendingPathComponent("Benchmarks", isDirectory: true)
            self.bundled = bundled
        }
    }

    public let writing: WritingModel
    public let importing: ImportModel
    public let bench: BenchModel
    private let bundled: URL?
    private var isOpen = false

    public convenience init(places: Places, announce: @escaping @MainActor (String) -> Void) {
        self.init(places: places, load: Engine.load, announce: announce)
    }

    init(places: Places, load: @escaping Engine.Load, announce: @escaping @MainActor (String) -> Void) {
        writing = WritingModel(file: SettingsFile(places.settings), load: load, announce: announce)
        importing = ImportModel(library: ModelLibrary(home: places.models), load: load)
        bench = BenchModel(folder: places.reports)
        bundled = places.bundled
        importing.onAdded = { [writing] model, engine in
            // A text under way goes on; the model can be chosen after it.
            if !writing.canStop { writing.use(model, engine) }
        }
        importing.onRemoved = { [writing, importing] model in
            if writing.model?.id == model.id { writing.use(importing.models.first) }
        }
    }

    /// Finds the models, loads the one that was used last, and adds those that came with the app.
    public func open() {
        guard !isOpen else { return }
        isOpen = true
        importing.open()
        let known = importing.models
        if let model = known.first(where: { $0.id == writing.settings.model }) ?? known.first { writing.use(model) }
        if let bundled { importing.addMissing(in: bundled, preferring: writing.settings.units) }
    }

    public func add(_ folder: URL) { importing.add(folder, preferring: writing.settings.units) }

    public var canWrite: Bool { writing.canWrite && !bench.isRunning }

    public func write() {
        if canWrite { writing.write() }
    }

    public var canChooseModel: Bool { !bench.isRunning && !importing.isBusy && !writing.canStop }

    public func canChoose(_ model: StoredModel) -> Bool { canChooseModel && model.id != writing.model?.id }

    /// Writes with another model.
    public func choose(_ model: StoredModel) {
        if canChoose(model) { writing.use(model) }
    }

    /// What runs a model, and whether it is the one in use, in a line.
    public func summary(of model: StoredModel) -> String {
        guard model.id == writing.model?.id else { return model.engineName }
        return "In use. \(writing.engine?.place ?? model.engineName)"
    }

    /// One sentence for each thing that is not as it was asked for.
    public func notes(of model: StoredModel) -> [String] {
        model.id == writing.model?.id ? writing.engine?.notes ?? [] : []
    }

    public func remove(_ model: StoredModel) {
        if canChooseModel { importing.remove(model) }
    }

    public var canMeasure: Bool {
        writing.model != nil && !writing.isBusy && !importing.isBusy && !bench.isRunning
    }

    /// Measures the model in use at the chosen depth, with nothing else in memory.
    public func measure() {
        guard canMeasure, let model = writing.model else { return }
        writing.unload()
        bench.run(model, depth: writing.depth)
    }

    public func handle(_ condition: EngineCondition) {
        writing.handle(condition)
        importing.handle(condition)
        bench.handle(condition)
    }

    /// The app is in the foreground again.
    public func resume() { writing.resume() }
}
