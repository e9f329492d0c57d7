import Foundation
import TRMCore
import TRMCoreML

/// A model in the app's own folder, and what runs it.
public enum StoredModel: Equatable, Sendable, Identifiable {
    /// An export folder, which Core ML runs.
    case export(InstalledModel)
    /// A model folder, which the reference engine runs.
    case folder(StoredFolder)

    /// One for each content.
    public var id: String {
        switch self {
        case .export(let model): model.id
        case .folder(let model): model.record.revision
        }
    }

    public var name: String {
        switch self {
        case .export(let model): model.manifest.name
        case .folder(let model): model.record.name
        }
    }

    /// What runs it, for people.
    public var engineName: String {
        switch self {
        case .export: "Core ML"
        case .folder: "Reference engine"
        }
    }

    /// Depths that it can be run at, ascending.
    public var depths: [Int] {
        switch self {
        case .export(let model): model.manifest.depths
        case .folder(let model): Array(1...max(1, model.record.depth))
        }
    }

    /// Most tokens of a text.
    public var context: Int {
        switch self {
        case .export(let model): model.manifest.context
        case .folder(let model): model.record.context
        }
    }

    /// The details of a model, in the order in which they are shown.
    public var facts: [Fact] {
        switch self {
        case .export(let model): Self.facts(of: model.manifest) + [Fact("Manifest SHA-256", model.id)]
        case .folder(let model): Self.facts(of: model.record)
        }
    }

    private static func facts(of manifest: Manifest) -> [Fact] {
        [
            Fact("Engine", "Core ML"),
            Fact("Parameters stored", count(manifest.storedParameters)),
            Fact("Parameters at work", count(manifest.effectiveParameters)),
            Fact("Depths", manifest.depths.map(String.init).joined(separator: ", ")),
            Fact("Context", "\(manifest.context) tokens"),
            Fact("Attention window", manifest.window == 0 ? "the whole context" : "\(manifest.window) tokens"),
            Fact("Vocabulary", "\(manifest.vocabulary) tokens"),
            Fact("Weights", manifest.compress == .none ? manifest.weights : manifest.compress.rawValue),
            Fact("Precision", manifest.precision.rawValue),
            Fact("Cache", manifest.state == .model ? "kept by the model" : "kept by the app"),
            Fact("Tokens read at once", "\(manifest.chunk)"),
            Fact("Size", size(manifest.totalBytes)),
            Fact("Revision", manifest.revision),
        ]
    }

    private static func facts(of record: FolderRecord) -> [Fact] {
        [
            Fact("Engine", "Reference engine, on one core of the CPU"),
            Fact("Parameters stored", count(record.parameters)),
            Fact("Depths", (1...max(1, record.depth)).map(String.init).joined(separator: ", ")),
            Fact("Context", "\(record.context) tokens"),
            Fact("Vocabulary", "\(record.vocabulary) tokens"),
            Fact("Precision", "float32"),
            Fact("Size", size(record.weightsBytes)),
            Fact("Revision", record.revision),
        ]
    }

    private static func count(_ number: Int) -> String {
        number < 100_000 ? "\(number)" : String(format: "%.1f million", Double(number) / 1e6)
    }

    private static func size(_ bytes: Int) -> String {
        bytes < 100_000 ? "\((bytes + 999) / 1000) KB" : String(format: "%.1f MB", Double(bytes) / 1e6)
    }
}

/// One line of a model's details.
public struct Fact: Equatable, Sendable, Identifiable {
    public let label, value: String
    public var id: String { label }

    init(_ label: String, _ value: String) { (self.label, self.value) = (label, value) }
}
