import Foundation
import TRMCore

#if COREML_STUB
    import CoreMLStub
#else
    @preconcurrency import CoreML
#endif

/// A package that Core ML runs: the caller's side of `docs/export.md`.
///
/// Prompts are read in chunks. Where a chunk does not fit, or `prefill` does not load or run, they are read token by
/// token, with the same scores.
public final class CoreMLStepModel: ProbedModel {
    public let manifest: Manifest
    public let units: ComputeUnits
    /// Functions that are not used any more, and why: prompts at their depth are read token by token.
    public private(set) var refusals: [String: String] = [:]
    /// What loading the functions took, and the first call of each.
    public private(set) var loading = Duration.zero
    public private(set) var firstCalls = Duration.zero

    public var vocabulary: Int { manifest.vocabulary }
    public var context: Int { manifest.context }
    public var depths: [Int] { manifest.depths }
    public var position: Int { text.count }

    private let compiled: URL
    private let format: NumberFormat
    private var pair: Manifest.FunctionPair
    private var models: [String: MLModel] = [:]
    private var called: Set<String> = []
    private var text: [Int32] = []
    /// Tokens of the text that the cache holds; fewer than all when a call failed and all must be read again.
    private var written = 0
    private var cache: Cache?

    private enum Cache {
        case state(MLState)
        case host(MLMultiArray)
    }

    /// - Parameter compiled: the package as `compile` made it. Its functions are loaded when they are first needed.
    public init(compiled: URL, manifest: Manifest, units: ComputeUnits) throws {
        guard let deepest = manifest.functions.last else { throw CoreMLError.unknownDepth(0, known: []) }
        (self.compiled, self.manifest, self.units, pair) = (compiled, manifest, units, deepest)
        format = manifest.precision == .float16 ? .float16 : .float32
    }

    /// Compiles a package for this device, in a temporary place.
    public static func compile(_ package: URL) async throws -> URL { try await MLModel.compileModel(at: package) }

    public func reset(depth: Int) throws {
        guard let pair = manifest.pair(depth: depth) else { throw CoreMLError.unknownDepth(depth, known: depths) }
        self.pair = pair
        text = []
        forget()
    }

    public func append(_ tokens: [Int32]) throws -> [Float] {
        guard !tokens.isEmpty else { throw CoreMLError.noTokens }
        if let id = tokens.first(where: { !(0..<vocabulary).contains(Int($0)) }) {
            throw CoreMLError.tokenOutOfRange(Int(id), vocabulary: vocabulary)
        }
        guard position + tokens.count <= context else {
            throw CoreMLError.tooLong(tokens: tokens.count, position: position, context: context)
        }
        let known = refusals
        text += tokens
        do { return try readOn() } catch {
            text.removeLast(tokens.count)
            refusals = known  // both functions failed, so that the fault need not be prefill's
            forget()
            throw error
        }
    }

    public func warmUp(depth: Int) throws {
        let some = Int32(manifest.tokens.bos)
        try reset(depth: depth)
        _ = try append([some, some])  // prefill, of which most is padding
        _ = try append([some])
        try reset(depth: depth)
    }

    public func refusePrefill(depth: Int, reason: String) {
        if let pair = manifest.pair(depth: depth) { refusals[pair.prefill] = reason }
    }

    /// Reads what of the text the cache does not hold yet.
    private func readOn() throws -> [Float] {
        var scores: [Float] = []
        while written < text.count {
            let part = nextPart()
            if part.count == 1 {
                scores = try call(pair.decode, part)
            } else {
                do { scores = try call(pair.prefill, part) } catch {
                    refusals[pair.prefill] = error.localizedDescription
                    forget()  // it may have written some of its rows, anywhere
                    continue
                }
            }
            written += part.count
        }
        return scores
    }

    private func nextPart() -> ArraySlice<Int32> {
        let end = written + manifest.chunk
        let one = text[written...written]
        // A chunk that would pass the end of the context would be written elsewhere than the mask expects.
        guard text.count - written > 1, end <= context, refusals[pair.prefill] == nil else { return one }
        do { _ = try model(pair.prefill) } catch {
            refusals[pair.prefill] = error.localizedDescription
            return one
        }
        return text[written..<min(end, text.count)]
    }

    private func forget() { (written, cache) = (0, nil) }

    /// Scores after the last of the tokens, which are the next ones of the text.
    private func call(_ name: String, _ tokens: ArraySlice<Int32>) throws -> [Float] {
        try pooled {
            let model = try model(name)
            let cache = try held()
            var inputs = ["position": try whole([Int32(written)], [1])]
            if tokens.count == 1 {
                inputs["input_ids"] = try whole(Array(tokens), [1, 1])
            } else {
                let padding = [Int32](repeating: 0, count: manifest.chunk - tokens.count)
                inputs["input_ids"] = try whole(tokens + padding, [1, manifest.chunk])
                inputs["last_index"] = try whole([Int32(tokens.count - 1)], [1])
            }
            if case .host(let array) = cache { inputs["kv_cache"] = MLFeatureValue(multiArray: array) }
            let outputs: any MLFeatureProvider
            let began = ContinuousClock.now
            do {
                let provider = try MLDictionaryFeatureProvider(dictionary: inputs)
                switch cache {
                case .state(let state): outputs = try model.prediction(from: provider, using: state)
                case .host: outputs = try model.prediction(from: provider)
                }
            } catch {
                throw CoreMLError.notRun(function: name, position: written, reason: error.localizedDescription)
            }
            if called.insert(name).inserted { firstCalls += ContinuousClock.now - began }
            let scores = try self.scores(outputs, name)
            if case .host(let array) = cache { try write(tokens.count, of: outputs, to: array, name) }
            return scores
        }
    }

    private func model(_ name: String) throws -> MLModel {
        if let model = models[name] { return model }
        let configuration = MLModelConfiguration()
        configuration.functionName = name
        configuration.computeUnits = units.coreML
        let began = ContinuousClock.now
        let model: MLModel
        do { model = try MLModel(contentsOf: compiled, configuration: configuration) } catch {
            throw CoreMLError.notLoaded(function: name, units: units, reason: error.localizedDescription)
        }
        loading += ContinuousClock.now - began
        try checkInterface(of: model, name)
        models[name] = model
        return model
    }

    /// The cache of the text, all zeros at its start.
    private func held() throws -> Cache {
        if let cache { return cache }
        let made: Cache
        switch manifest.state {
        case .model: made = .state(try model(pair.decode).makeState())
        case .host:
            let shape = manifest.cacheShape.map { NSNumber(value: $0) }
            let array = try MLMultiArray(shape: shape, dataType: format.coreML)
            array.withUnsafeMutableBytes { bytes, _ in _ = bytes.initializeMemory(as: UInt8.self, repeating: 0) }
            made = .host(array)
        }
        cache = made
        return made
    }

    private func whole(_ numbers: [Int32], _ shape: [Int]) throws -> MLFeatureValue {
        let array = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: .int32)
        try array.withUnsafeMutableBytes { bytes, strides in
            guard let layout = ArrayLayout(shape: shape, strides: strides, room: bytes.count / 4) else {
                throw otherInterface("inputs", "\(shape)", "strides \(strides)", pair.decode)
            }
            for (place, number) in numbers.enumerated() {
                let offset = place * (layout.strides.last ?? 1)
                bytes.storeBytes(of: number, toByteOffset: 4 * offset, as: Int32.self)
            }
        }
        return MLFeatureValue(multiArray: array)
    }

    private func scores(_ outputs: any MLFeatureProvider, _ function: String) throws -> [Float] {
        try output("logits", [1, 1, vocabulary], outputs, function) { format.row($0, $1) }
    }

    private func write(
        _ count: Int, of outputs: any MLFeatureProvider, to cache: MLMultiArray, _ function: String
    ) throws {
        let tokens = function == pair.decode ? 1 : manifest.chunk
        let shape = [2 * pair.slots, manifest.kvHeads, tokens, manifest.headWidth]
        try output("kv_rows", shape, outputs, function) { rows, source in
            try cache.withUnsafeMutableBytes { bytes, strides in
                let room = bytes.count / format.bytes
                let whole = manifest.cacheShape
                guard let target = ArrayLayout(shape: whole, strides: strides, room: room) else {
                    throw otherInterface("kv_cache", "\(whole)", "strides \(strides)", function)
                }
                copyRows(count, from: rows, source, to: written, of: bytes, target, format: format)
            }
        }
    }

    private func output<Result>(
        _ key: String, _ shape: [Int], _ outputs: any MLFeatureProvider, _ function: String,
        _ read: (UnsafeRawBufferPointer, ArrayLayout) throws -> Result
    ) throws -> Result {
        guard let array = outputs.featureValue(for: key)?.multiArrayValue else {
            throw otherInterface(key, "\(shape)", "none", function)
        }
        let (found, strides) = (array.shape.map(\.intValue), array.strides.map(\.intValue))
        return try array.withUnsafeBytes { bytes in
            let layout = ArrayLayout(shape: found, strides: strides, room: bytes.count / format.bytes)
            guard found == shape, array.dataType == format.coreML, let layout else {
                let got = "\(name(array.dataType)) \(found), strides \(strides), in \(bytes.count) bytes"
                throw otherInterface(key, "\(manifest.precision) \(shape)", got, function)
            }
            return try read(bytes, layout)
        }
    }

    private func otherInterface(
        _ feature: String, _ wanted: String, _ got: String, _ function: String
    ) -> CoreMLError {
        .otherInterface(function: function, feature: feature, wanted: wanted, got: got)
    }
}
