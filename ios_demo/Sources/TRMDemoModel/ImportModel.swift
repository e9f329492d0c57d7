import Foundation
import Observation
import TRMCoreML

/// The model screen: the models there are, and the import of others.
@MainActor @Observable
public final class ImportModel {
    public enum Phase: Equatable, Sendable {
        case idle
        /// The share that is copied, 0 to 1.
        case copying(Double)
        /// It is compiled, loaded and tested.
        case preparing
        /// The name of the model that is there now.
        case added(String)
        /// In a sentence for the user.
        case failed(String)
    }

    public private(set) var phase = Phase.idle
    public private(set) var models: [StoredModel] = []
    /// Takes a model that was imported, loaded and ready to write.
    public var onAdded: (StoredModel, Engine) -> Void = { _, _ in }
    /// Is told of a model that is there no more.
    public var onRemoved: (StoredModel) -> Void = { _ in }

    private let library: ModelLibrary
    private let load: Engine.Load
    private var task: Task<Void, Never>?

    public init(library: ModelLibrary, load: @escaping Engine.Load = Engine.load) {
        (self.library, self.load) = (library, load)
    }

    /// Lists the models; call it once at the launch, before any import.
    public func open() {
        library.removeUnfinished()
        models = library.models()
    }

    public var isBusy: Bool {
        switch phase {
        case .copying, .preparing: true
        case .idle, .added, .failed: false
        }
    }

    /// Copies a folder that the user chose, checks the copy, loads it and tests it. Of what fails, nothing stays.
    public func add(_ folder: URL, preferring units: ComputeUnits) {
        guard !isBusy else { return }
        phase = .copying(0)
        task = Task { await add(folder, units) }
    }

    /// Adds the models in a folder that came with the app, but for those that are there already.
    public func addMissing(in folder: URL, preferring units: ComputeUnits) {
        guard !isBusy else { return }
        let library = library
        task = Task {
            let missing = await Task.detached {
                ModelLibrary.candidates(in: folder).filter { !library.holds($0) }
            }.value
            for each in missing where !Task.isCancelled && !isBusy {
                phase = .copying(0)
                await add(each, units)
            }
        }
    }

    /// The system's picker of files gave no folder.
    public func refuse(_ error: any Error) { phase = .failed(error.localizedDescription) }

    public func cancel() { task?.cancel() }

    /// Waits for the import under way.
    func settle() async { await task?.value }

    private func add(_ folder: URL, _ units: ComputeUnits) async {
        let before = Set(models.map(\.id))
        var added: StoredModel?
        do {
            let model = try await copy(folder)
            if !before.contains(model.id) { added = model }
            phase = .preparing
            let engine = try await load(model, units)
            try Task.checkCancellation()
            phase = .added(model.name)
            models = library.models()
            onAdded(model, engine)
        } catch {
            if let added { try? library.remove(added) }  // the error that led here says more than this one's
            models = library.models()
            phase = error is CancellationError ? .idle : .failed(error.localizedDescription)
        }
    }

    /// The copy is made beside the main actor; cancelling ends it soon.
    private func copy(_ folder: URL) async throws -> StoredModel {
        let (shares, feed) = AsyncStream.makeStream(of: Double.self, bufferingPolicy: .bufferingNewest(1))
        let library = library
        let work = Task.detached {
            defer { feed.finish() }
            return try library.add(folder) { feed.yield($0) }
        }
        return try await withTaskCancellationHandler {
            for await share in shares { phase = .copying(share) }
            let model = try await work.value
            guard Task.isCancelled else { return model }
            if !models.contains(where: { $0.id == model.id }) { try? library.remove(model) }
            throw CancellationError()
        } onCancel: {
            work.cancel()
        }
    }

    public func remove(_ model: StoredModel) {
        guard !isBusy else { return }
        do { try library.remove(model) } catch { phase = .failed(error.localizedDescription) }
        models = library.models()
        onRemoved(model)
    }

    /// Does what the policy says of memory, heat and leaving the foreground; a copy goes on.
    public func handle(_ condition: EngineCondition) {
        if phase == .preparing, condition.action(during: .loading) == .cancelLoading { cancel() }
    }

    /// The phase as a sentence.
    public var status: String {
        switch phase {
        case .idle: models.isEmpty ? "There is no model yet." : ""
        case .copying(let share): "Copying and checking the model: \(Int((100 * share).rounded(.down))) percent."
        case .preparing: "Loading and testing the model. The first time may take a minute."
        case .added(let name): "\(name) is ready."
        case .failed(let sentence): sentence
        }
    }

    public var share: Double {
        if case .copying(let share) = phase { share } else { 0 }
    }
}
