import Foundation
import TRMBenchKit
import TRMCore
import TRMCoreML
import TRMReference

/// One way to run a model that is measured: an engine, and for Core ML its compute units.
package struct BenchSubject: Sendable {
    /// As `trm.bench/1` names compute units.
    let units: String
    /// For people.
    let name: String
    package let measure: Measure

    package typealias Tell = @Sendable (String) -> Void
    package typealias Measure = @Sendable (BenchPlan, _ depth: Int, @escaping Tell) async throws -> BenchReport

    /// All ways to run a model, those that fewer models fail on first.
    typealias All = @Sendable (StoredModel) -> [BenchSubject]

    static let all: All = { model in
        switch model {
        case .folder(let model): [reference(model)]
        case .export(let model): ComputeUnits.allCases.reversed().map { coreML(model, $0, tool: "TRMDemo") }
        }
    }

    private static func reference(_ model: StoredFolder) -> BenchSubject {
        BenchSubject(units: "n/a", name: "Reference engine, CPU") { plan, depth, tell in
            var runner = BenchRunner(plan: plan, depth: depth)
            runner.progress = tell
            let measured = try await runner.run { try ReferenceModel(contentsOf: model.model) }
            let record = model.record
            return try BenchReport(
                plan: plan, measured: measured, tool: BenchReport.Tool(name: "TRMDemo", runtime: "reference"),
                model: BenchReport.Model(
                    name: record.name, revision: record.revision, manifestSha256: record.fingerprint,
                    parameters: record.parameters, recursions: depth, weightsBytes: record.weightsBytes,
                    precision: "float32"),
                context: record.context)
        }
    }

    /// - Parameter tool: the command or the app that writes the report.
    package static func coreML(_ model: InstalledModel, _ units: ComputeUnits, tool: String) -> BenchSubject {
        BenchSubject(units: units.rawValue, name: units.name) { plan, depth, tell in
            let manifest = model.manifest
            tell("loading and testing")
            let compiled = try await ModelInstaller().compiled(model)
            let loader = try await ModelInstaller().loader(for: model)
            var runner = BenchRunner(plan: plan, depth: depth)
            runner.progress = tell
            let times = Latest<(loading: Duration, first: Duration)>()
            var measured = try await runner.run {
                var report: LoadReport?
                let made = try loader.load(preferring: units) { report = $0 }
                guard report?.units == units else { throw BenchRefusal.units(report?.skipped.first) }
                if let model = made as? CoreMLStepModel { times.value = (model.loading, model.firstCalls) }
                return made
            }
            if let times = times.value {  // without the self-test, which is no part of loading
                measured.load = Load(
                    compileMs: compiled.duration.map(milliseconds), loadMs: milliseconds(times.loading),
                    firstPredictionMs: milliseconds(times.first))
            }
            let weights = manifest.files.filter { $0.path.hasSuffix("/weight.bin") }.reduce(0) { $0 + $1.bytes }
            return try BenchReport(
                plan: plan, measured: measured, tool: BenchReport.Tool(name: tool, runtime: "coreml"),
                model: BenchReport.Model(
                    name: manifest.name, revision: manifest.revision, manifestSha256: model.id,
                    parameters: manifest.storedParameters, recursions: depth, weightsBytes: weights,
                    precision: manifest.precision.rawValue),
                context: manifest.context, units: units.rawValue, chunk: manifest.chunk,
                placement: try await placement(compiled.place, manifest.pair(depth: depth)?.decode, units))
        }
    }

    private static func placement(
        _ compiled: URL, _ function: String?, _ units: ComputeUnits
    ) async throws -> BenchReport.Placement? {
        #if canImport(CoreML)
            guard let function,
                let plan = try await ComputePlacement.plan(compiled: compiled, function: function, units: units)
            else { return nil }
            return BenchReport.Placement(
                aneOps: plan.operations[.ane] ?? 0, gpuOps: plan.operations[.gpu] ?? 0,
                cpuOps: plan.operations[.cpu] ?? 0, aneCost: plan.costs?[.ane], gpuCost: plan.costs?[.gpu],
                cpuCost: plan.costs?[.cpu])
        #else
            return nil
        #endif
    }
}

/// Why one way to run a model was not measured.
package enum BenchRefusal: Error, Equatable {
    case units(SkippedUnits?)
}

extension BenchRefusal: LocalizedError {
    package var errorDescription: String? {
        switch self {
        case .units(let skipped): skipped?.sentence ?? "The model does not run on these processors."
        }
    }
}

private func milliseconds(_ duration: Duration) -> Double { duration / .milliseconds(1) }
