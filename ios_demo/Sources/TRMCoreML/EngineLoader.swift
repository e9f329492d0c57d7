import Foundation
import TRMCore

/// How a model came to run.
public struct LoadReport: Equatable, Sendable {
    public let units: ComputeUnits
    /// Units that were to be preferred, and why they are not used.
    public let skipped: [SkippedUnits]
    /// Functions that are not used, and why: prompts at their depth are read token by token.
    public let refusals: [String: String]
    /// All of it: loading, self-test and first calls, on every unit that was tried.
    public let duration: Duration

    /// One sentence for each thing that is not as it was asked for.
    public var notes: [String] {
        let slow = refusals.sorted { $0.key < $1.key }.map { "\($0.key) is not used: \($0.value)" }
        return skipped.map(\.sentence) + slow
    }
}

/// Finds compute units that a model really runs on: loads it, asks the self-test, and calls every function once.
public struct EngineLoader: Sendable {
    public let manifest: Manifest
    public let sentinel: CrashSentinel
    private let make: @Sendable (ComputeUnits) throws -> any ProbedModel

    /// - Parameters:
    ///   - compiled: what `ModelInstaller` made of the package, or what Xcode did.
    ///   - folder: where the sentinel's files go.
    public init(manifest: Manifest, compiled: URL, folder: URL) {
        self.init(manifest: manifest, folder: folder) {
            try CoreMLStepModel(compiled: compiled, manifest: manifest, units: $0)
        }
    }

    init(manifest: Manifest, folder: URL, make: @escaping @Sendable (ComputeUnits) throws -> any ProbedModel) {
        (self.manifest, sentinel, self.make) = (manifest, CrashSentinel(folder: folder), make)
    }

    /// A model that passed. It may take a minute the first time; call it where the model is to stay, as in the
    /// closure that makes a generator's model.
    ///
    /// - Parameters:
    ///   - units: tried first, and then those below them.
    ///   - tell: is given the report once there is a model.
    public func load(
        preferring units: ComputeUnits, tell: (LoadReport) -> Void = { _ in }
    ) throws -> any ProbedModel {
        let began = ContinuousClock.now
        var skipped: [SkippedUnits] = []
        let killers = sentinel.killers
        for units in units.ladder {
            try Task.checkCancellation()
            if killers.contains(units) {
                skipped.append(SkippedUnits(units: units, reason: .crashed))
                continue
            }
            sentinel.begin(units)
            defer { sentinel.end(units) }
            do {
                let model = try proven(units)
                let duration = ContinuousClock.now - began
                tell(LoadReport(units: units, skipped: skipped, refusals: model.refusals, duration: duration))
                return model
            } catch let error as CancellationError { throw error } catch {
                skipped.append(SkippedUnits(units: units, reason: .failed(error.localizedDescription)))
            }
        }
        throw EngineError.nothingWorks(skipped)
    }

    private func proven(_ units: ComputeUnits) throws -> any ProbedModel {
        let model = try make(units)
        try SelfTest(test: manifest.selfTest).run(on: model)
        for depth in manifest.depths {
            try Task.checkCancellation()
            try model.warmUp(depth: depth)
        }
        return model
    }
}
