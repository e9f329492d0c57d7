import Foundation
import TRMCoreML

/// What the app remembers between launches; no text is among it.
public struct WritingSettings: Codable, Equatable, Sendable {
    /// Whether a text is gone on with, or a story is asked for.
    public enum Mode: String, Codable, CaseIterable, Sendable {
        case goOn, words
    }

    public static let temperatures = 0.0...1.5
    public static let lengths = 16...1024

    /// Passes through the core, nil for the most the model has.
    public var depth: Int?
    /// nil for what the model starts from.
    public var temperature: Double?
    public var seed: UInt64 = 0
    public var maxTokens = 256
    public var mode = Mode.goOn
    public var units = ComputeUnits.cpuAndNeuralEngine
    /// The id of the model in use.
    public var model: String?

    public init() {}

    /// The same with what makes no sense brought into its range, since the file may be of another version.
    var sane: WritingSettings {
        var copy = self
        if let depth, depth < 1 { copy.depth = nil }
        if let temperature, !Self.temperatures.contains(temperature) { copy.temperature = nil }
        copy.maxTokens = min(max(maxTokens, Self.lengths.lowerBound), Self.lengths.upperBound)
        return copy
    }
}

/// One JSON file that holds the settings.
public struct SettingsFile: Sendable {
    private let file: URL

    public init(_ file: URL) { self.file = file }

    /// The settings, or those of a new app if there is no such file or it is not understood.
    public func load() -> WritingSettings {
        guard let bytes = try? Data(contentsOf: file),
            let settings = try? JSONDecoder().decode(WritingSettings.self, from: bytes)
        else { return WritingSettings() }
        return settings.sane
    }

    /// A full disk must not keep anybody from writing: then the settings last until the app ends.
    public func save(_ settings: WritingSettings) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
        guard let bytes = try? encoder.encode(settings) else { return }
        let folder = file.deletingLastPathComponent()
        try? FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try? bytes.write(to: file, options: .atomic)
    }
}
