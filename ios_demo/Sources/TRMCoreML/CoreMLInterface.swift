import Foundation
import TRMCore

#if COREML_STUB
    import CoreMLStub
#else
    @preconcurrency import CoreML
#endif

extension ComputeUnits {
    var coreML: MLComputeUnits {
        switch self {
        case .cpuAndNeuralEngine: .cpuAndNeuralEngine
        case .cpuAndGPU: .cpuAndGPU
        case .cpuOnly: .cpuOnly
        }
    }
}

extension NumberFormat {
    var coreML: MLMultiArrayDataType { self == .float16 ? .float16 : .float32 }
}

func name(_ type: MLMultiArrayDataType) -> String {
    if type == .float16 { return "float16" }
    if type == .float32 { return "float32" }
    return type == .int32 ? "int32" : "type \(type.rawValue)"
}

extension CoreMLStepModel {
    /// Compares what a loaded function says of itself with the manifest.
    func checkInterface(of model: MLModel, _ function: String) throws {
        guard let pair = manifest.functions.first(where: { $0.decode == function || $0.prefill == function }) else {
            return
        }
        let chunked = function == pair.prefill
        let tokens = chunked ? manifest.chunk : 1
        let number: MLMultiArrayDataType = manifest.precision == .float16 ? .float16 : .float32
        let rows = [2 * pair.slots, manifest.kvHeads, tokens, manifest.headWidth]
        var inputs: [String: Feature] = ["input_ids": ([1, tokens], .int32), "position": ([1], .int32)]
        var outputs: [String: Feature] = ["logits": ([1, 1, vocabulary], number)]
        if chunked { inputs["last_index"] = ([1], .int32) }
        if manifest.state == .host {
            inputs["kv_cache"] = (manifest.cacheShape, number)
            outputs["kv_rows"] = (rows, number)
        }
        let states: [String: Feature] = manifest.state == .model ? ["kv_cache": (manifest.cacheShape, number)] : [:]
        let told = model.modelDescription
        try compare(told.inputDescriptionsByName.mapValues(Self.array), with: inputs, function)
        try compare(told.outputDescriptionsByName.mapValues(Self.array), with: outputs, function)
        try compare(told.stateDescriptionsByName.mapValues(Self.state), with: states, function)
    }

    private typealias Feature = (shape: [Int], type: MLMultiArrayDataType)

    private static func array(_ told: MLFeatureDescription) -> Feature? {
        told.multiArrayConstraint.map { ($0.shape.map(\.intValue), $0.dataType) }
    }

    private static func state(_ told: MLFeatureDescription) -> Feature? {
        told.stateConstraint.map { ($0.bufferShape, $0.dataType) }
    }

    private func compare(_ found: [String: Feature?], with wanted: [String: Feature], _ function: String) throws {
        for key in Set(found.keys).union(wanted.keys).sorted() {
            let got = found[key] ?? nil
            // A shape may be left out of a description; what comes at run time is compared with the manifest again.
            if let got, let feature = wanted[key], got.type == feature.type,
                got.shape.isEmpty || got.shape == feature.shape
            {
                continue
            }
            let (right, wrong) = (Self.text(wanted[key]), Self.text(got))
            throw CoreMLError.otherInterface(function: function, feature: key, wanted: right, got: wrong)
        }
    }

    private static func text(_ feature: Feature?) -> String {
        feature.map { "\(name($0.type)) \($0.shape)" } ?? "none"
    }
}
