import Foundation
import Synchronization
import TRMCore
import TRMCoreML
import TRMReference

/// A model that can write.
public struct Engine: Sendable {
    public let generator: Generator
    public let tokenizer: Tokenizer
    public let limits: ModelLimits
    /// What the controls start from.
    public let sampling: SamplingConfig
    private let loaded: @Sendable () -> LoadReport?

    public init(
        generator: Generator, tokenizer: Tokenizer, limits: ModelLimits,
        sampling: SamplingConfig = SamplingConfig(), loaded: @escaping @Sendable () -> LoadReport? = { nil }
    ) {
        (self.generator, self.tokenizer, self.limits) = (generator, tokenizer, limits)
        (self.sampling, self.loaded) = (sampling, loaded)
    }

    /// Where it runs, for people.
    public var place: String { loaded().map { "Core ML, \($0.units.name)" } ?? "Reference engine, CPU" }

    /// One sentence for each thing that is not as it was asked for.
    public var notes: [String] { loaded()?.notes ?? [] }

    /// Makes a model ready to write, tried and tested. It may take a minute the first time.
    public typealias Load = @Sendable (StoredModel, ComputeUnits) async throws -> Engine

    public static let load: Load = { model, units in
        switch model {
        case .export(let model): try await load(model, preferring: units)
        case .folder(let model): try await load(model)
        }
    }

    private static func load(_ model: InstalledModel, preferring units: ComputeUnits) async throws -> Engine {
        let manifest = model.manifest
        let tokenizer = try Tokenizer(contentsOf: model.tokenizer)
        try check(tokenizer, manifest.tokens)
        let loader = try await ModelInstaller().loader(for: model)
        let report = Latest<LoadReport>()
        let generator = Generator(codec: tokenizer, pieceLength: manifest.chunk) {
            try loader.load(preferring: units) { report.value = $0 }
        }
        let start = manifest.sampling
        let sampling = SamplingConfig(
            temperature: start.temperature, topK: start.topK, topP: start.topP, minP: start.minP,
            repetitionPenalty: start.repetitionPenalty)
        let limits = try await generator.prepare()
        return Engine(generator: generator, tokenizer: tokenizer, limits: limits, sampling: sampling) {
            report.value
        }
    }

    private static func load(_ model: StoredFolder) async throws -> Engine {
        let tokenizer = try Tokenizer(contentsOf: model.tokenizer)
        let generator = Generator(codec: tokenizer, pieceLength: 8) {  // tokens are read one by one anyway
            try ReferenceModel(contentsOf: model.model)
        }
        let limits = try await generator.prepare()
        return Engine(generator: generator, tokenizer: tokenizer, limits: limits)
    }

    private static func check(_ tokenizer: Tokenizer, _ tokens: Manifest.Tokens) throws(LibraryError) {
        let found = [
            tokenizer.unknown, tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.user, tokenizer.assistant,
            tokenizer.end,
        ]
        let wanted = [
            tokens.unknown, tokens.bos, tokens.eos, tokens.pad, tokens.user, tokens.assistant, tokens.end,
        ]
        guard found.map(Int.init) == wanted else { throw .otherTokenizer }
    }
}

/// The last value that somebody set, from anywhere.
final class Latest<Value: Sendable>: Sendable {
    private let held = Mutex<Value?>(nil)

    var value: Value? {
        get { held.withLock { $0 } }
        set { held.withLock { $0 = newValue } }
    }
}
