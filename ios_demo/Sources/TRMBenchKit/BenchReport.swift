import Foundation

/// The report of a benchmark, `trm.bench/1`: what Python and Swift write. tests/golden/bench.schema.json is the schema.
///
/// Keys are these names in snake case; units end a name: `ttft_ns`, `cooldown_s`.
public struct BenchReport: Codable, Equatable, Sendable {
    public struct Tool: Codable, Equatable, Sendable {
        public let name, version, runtime, build: String

        /// - Parameters:
        ///   - name: `trm-bench` or `TRMDemo`.
        ///   - runtime: `coreml`, `reference` or `table`.
        public init(name: String, runtime: String) {
            #if DEBUG
                self.init(name: name, runtime: runtime, build: "debug")
            #else
                self.init(name: name, runtime: runtime, build: "release")
            #endif
        }

        init(name: String, runtime: String, build: String) {
            (self.name, version, self.runtime, self.build) = (name, "0.1.0", runtime, build)
        }
    }

    public struct Model: Codable, Equatable, Sendable {
        public let name, revision, manifestSha256: String
        public let parameters, recursions: Int
        public let weightsBytes: Int?
        public let precision: String?

        public init(
            name: String, revision: String, manifestSha256: String, parameters: Int, recursions: Int,
            weightsBytes: Int?,
            precision: String?
        ) {
            (self.name, self.revision, self.manifestSha256) = (name, revision, manifestSha256)
            (self.parameters, self.recursions) = (parameters, recursions)
            (self.weightsBytes, self.precision) = (weightsBytes, precision)
        }
    }

    public struct Sampling: Codable, Equatable, Sendable {
        public let temperature: Int
        public let ignoreEos: Bool
    }

    public struct Setup: Codable, Equatable, Sendable {
        public let computeUnits: String
        public let effectivePrefillChunk: Int?
        public let promptTokens, newTokens, warmupTrials, trials: Int
        public let cooldownS: Double
        public let prompt: String
        public let sampling: Sampling
        public let contextLength: Int?
    }

    /// Where Core ML plans to run a model: counts of operations, and shares of the estimated cost.
    public struct Placement: Codable, Equatable, Sendable {
        public let aneOps, gpuOps, cpuOps: Int
        public let aneCost, gpuCost, cpuCost: Double?

        public init(
            aneOps: Int, gpuOps: Int, cpuOps: Int, aneCost: Double? = nil, gpuCost: Double? = nil,
            cpuCost: Double? = nil
        ) {
            (self.aneOps, self.gpuOps, self.cpuOps) = (aneOps, gpuOps, cpuOps)
            (self.aneCost, self.gpuCost, self.cpuCost) = (aneCost, gpuCost, cpuCost)
        }
    }

    public let format: String
    public let tool: Tool
    public let model: Model
    public let device: DeviceInfo
    public let config: Setup
    public let placement: Placement?
    public let load: Load
    public let trials: [Trial]
    public let summary: Summary

    /// - Parameters:
    ///   - context: most tokens of a text.
    ///   - units: Core ML's compute units, or `n/a`.
    ///   - chunk: tokens that the prompt is read in.
    /// - Throws: `BenchError.noTokens`: no trial made a second token.
    public init(
        plan: BenchPlan, measured: BenchRunner.Measured, tool: Tool, model: Model, context: Int,
        units: String = "n/a",
        chunk: Int = 1, placement: Placement? = nil, device: DeviceInfo = .here()
    ) throws {
        format = "trm.bench/1"
        (self.tool, self.model, self.device, self.placement) = (tool, model, device, placement)
        config = Setup(
            computeUnits: units, effectivePrefillChunk: chunk, promptTokens: plan.promptTokens,
            newTokens: plan.newTokens,
            warmupTrials: plan.warmup, trials: plan.trials, cooldownS: plan.cooldown,
            prompt: "splitmix64:\(plan.seed)",
            sampling: Sampling(temperature: 0, ignoreEos: true), contextLength: context)
        (load, trials) = (measured.load, measured.trials)
        summary = try Summary(
            measured.trials, plan: plan, device: device, build: tool.build, sustained: measured.sustained)
    }

    /// A report that `json()` or Python wrote.
    public init(json: Data) throws {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        self = try decoder.decode(BenchReport.self, from: json)
    }

    public func json() throws -> Data {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        return try encoder.encode(self) + Data("\n".utf8)
    }
}

/// Milliseconds before the first trial.
public struct Load: Codable, Equatable, Sendable {
    /// nil where nothing is compiled.
    public var compileMs: Double?
    public var loadMs: Double
    /// The first prompt and the first single token.
    public var firstPredictionMs: Double

    public init(compileMs: Double?, loadMs: Double, firstPredictionMs: Double) {
        (self.compileMs, self.loadMs, self.firstPredictionMs) = (compileMs, loadMs, firstPredictionMs)
    }

    private enum CodingKeys: String, CodingKey { case compileMs, loadMs, firstPredictionMs }

    /// The schema wants `compile_ms` also where it is null.
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(compileMs, forKey: .compileMs)
        try container.encode(loadMs, forKey: .loadMs)
        try container.encode(firstPredictionMs, forKey: .firstPredictionMs)
    }
}

/// One text.
public struct Trial: Codable, Equatable, Sendable {
    public let ttftNs, prefillNs: Int
    public let tpotNs: [Int]
    public let stopReason: String
    public let thermalBefore, thermalAfter: Thermal
    public let memoryPeakBytes: Int
    public let tokensSha256: String?
}
