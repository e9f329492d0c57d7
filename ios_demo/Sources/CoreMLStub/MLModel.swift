import Foundation

/// documentation/coreml/mlcomputeunits
public enum MLComputeUnits: Int, Sendable {
    case cpuOnly = 0
    case cpuAndGPU = 1
    case all = 2
    case cpuAndNeuralEngine = 3
}

/// documentation/coreml/mlmodelconfiguration
public final class MLModelConfiguration {
    /// documentation/coreml/mlmodelconfiguration/computeunits
    public var computeUnits = MLComputeUnits.all
    /// documentation/coreml/mlmodelconfiguration/functionname
    public var functionName: String?
    public init() {}
}

/// documentation/coreml/mlmultiarrayconstraint
public final class MLMultiArrayConstraint {
    public let shape: [NSNumber]
    public let dataType: MLMultiArrayDataType
    init(_ shape: [Int], _ type: MLMultiArrayDataType) {
        (self.shape, dataType) = (shape.map { NSNumber(value: $0) }, type)
    }
}

/// documentation/coreml/mlstateconstraint
public final class MLStateConstraint {
    public let bufferShape: [Int]
    public let dataType: MLMultiArrayDataType
    init(_ shape: [Int], _ type: MLMultiArrayDataType) { (bufferShape, dataType) = (shape, type) }
}

/// documentation/coreml/mlfeaturedescription
public final class MLFeatureDescription {
    public let multiArrayConstraint: MLMultiArrayConstraint?
    public let stateConstraint: MLStateConstraint?
    init(array: MLMultiArrayConstraint? = nil, state: MLStateConstraint? = nil) {
        (multiArrayConstraint, stateConstraint) = (array, state)
    }
}

/// documentation/coreml/mlmodeldescription
public final class MLModelDescription {
    public let inputDescriptionsByName: [String: MLFeatureDescription]
    public let outputDescriptionsByName: [String: MLFeatureDescription]
    public let stateDescriptionsByName: [String: MLFeatureDescription]

    init(_ program: HashProgram, _ function: HashProgram.Function) {
        func array(_ shape: [Int], _ type: MLMultiArrayDataType) -> MLFeatureDescription {
            MLFeatureDescription(array: MLMultiArrayConstraint(shape, type))
        }
        var inputs = ["input_ids": array([1, function.tokens], .int32), "position": array([1], .int32)]
        var outputs = ["logits": array([1, 1, program.vocabulary], program.type)]
        if function.tokens > 1 { inputs["last_index"] = array([1], .int32) }
        if program.hostCache {
            inputs["kv_cache"] = array(program.cacheShape, program.type)
            let rows = [2 * function.slots, program.kvHeads, function.tokens, program.headWidth]
            outputs["kv_rows"] = array(rows, program.type)
        }
        let state = MLFeatureDescription(state: MLStateConstraint(program.cacheShape, program.type))
        (inputDescriptionsByName, outputDescriptionsByName) = (inputs, outputs)
        stateDescriptionsByName = program.hostCache ? [:] : ["kv_cache": state]
    }
}

/// documentation/coreml/mlstate
public final class MLState {
    let cache: MLMultiArray?
    init(cache: MLMultiArray?) { self.cache = cache }
}

/// documentation/coreml/mlmodel
public final class MLModel {
    /// documentation/coreml/mlmodel/modeldescription
    public let modelDescription: MLModelDescription
    private let program: HashProgram
    private let function: String
    private let units: String
    private let compiled: URL

    /// documentation/coreml/mlmodel/init(contentsof:configuration:)
    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {
        let content = try Data(contentsOf: url.appendingPathComponent("program"))
        program = try JSONDecoder().decode(HashProgram.self, from: content)
        guard let name = configuration.functionName, let function = program.functions[name] else {
            throw StubError(reason: "there is no function \(configuration.functionName ?? "nil")")
        }
        let units = "\(configuration.computeUnits)"
        guard program.refused.isDisjoint(with: [name, units]) else { throw StubError(reason: "\(name) is refused") }
        modelDescription = MLModelDescription(program, function)
        (self.function, self.units, compiled) = (name, units, url)
    }

    /// documentation/coreml/mlmodel/compilemodel(at:)-45ao6
    public static func compileModel(at url: URL) async throws -> URL {
        let source = url.appendingPathComponent("Data/com.apple.CoreML/model.mlmodel")
        let program = try Data(contentsOf: source)
        _ = try JSONDecoder().decode(HashProgram.self, from: program)
        let made = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID().uuidString).mlmodelc")
        try FileManager.default.createDirectory(at: made, withIntermediateDirectories: true)
        try program.write(to: made.appendingPathComponent("program"))
        return made
    }

    /// documentation/coreml/mlmodel/makestate()
    public func makeState() -> MLState { MLState(cache: program.hostCache ? nil : program.cache()) }

    /// documentation/coreml/mlmodel/prediction(from:)-9y2aa
    public func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider {
        try run(input, nil)
    }

    /// documentation/coreml/mlmodel/prediction(from:using:)-97bu1
    public func prediction(
        from inputFeatures: any MLFeatureProvider, using state: MLState
    ) throws -> any MLFeatureProvider {
        try run(inputFeatures, state.cache)
    }

    private func run(_ inputs: any MLFeatureProvider, _ cache: MLMultiArray?) throws -> any MLFeatureProvider {
        let outputs = try program.run(function, units: units, compiled: compiled, inputs: inputs, state: cache)
        return try MLDictionaryFeatureProvider(dictionary: outputs)
    }
}
