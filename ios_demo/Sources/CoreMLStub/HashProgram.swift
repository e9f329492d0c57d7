import Foundation
import Synchronization

/// What the stand-in runs: scores are a hash of all that a call can see.
///
/// A wrong id, position, `last_index`, state or depth therefore changes every answer after it. It stands in the place
/// of a package's `model.mlmodel`, as JSON.
public struct HashProgram: Codable, Equatable, Sendable {
    public struct Function: Codable, Equatable, Sendable {
        public var depth, tokens, slots: Int

        public init(depth: Int, tokens: Int, slots: Int) {
            (self.depth, self.tokens, self.slots) = (depth, tokens, slots)
        }
    }

    public enum Strides: String, Codable, Sendable {
        /// `apart`: rows are wider than what they hold. `zero`: contiguous, and told to be zero.
        case plain, apart, zero
    }

    public struct Call: Equatable, Sendable {
        public let function: String
        public let position, last: Int

        public init(_ function: String, _ position: Int, _ last: Int) {
            (self.function, self.position, self.last) = (function, position, last)
        }
    }

    public var functions: [String: Function]
    public var vocabulary, context, slots, kvHeads, headWidth: Int
    public var hostCache = false
    public var float32 = false
    public var strides = Strides.plain
    /// Functions, or raw values of compute units, that do not load.
    public var refused: Set<String> = []
    /// Raw values of compute units, or functions, whose answers are wrong.
    public var wrong: Set<String> = []
    /// The call of a function, from 0, that fails and leaves rows in disorder.
    public var fails: [String: Int] = [:]

    public init(
        functions: [String: Function], vocabulary: Int, context: Int, slots: Int, kvHeads: Int, headWidth: Int
    ) {
        (self.functions, self.vocabulary, self.context) = (functions, vocabulary, context)
        (self.slots, self.kvHeads, self.headWidth) = (slots, kvHeads, headWidth)
    }

    /// What every reading of these tokens must give in the end, whatever the chunks.
    public func scores(after ids: [Int32], depth: Int) -> [Float] {
        guard let function = functions.values.first(where: { $0.depth == depth }) else { return [] }
        var hash = UInt64(depth)
        for (position, id) in ids.enumerated() {
            for (row, head, k) in places(function) {
                Self.mix(&hash, value(Int(id), position, row, head, k).bitPattern)
            }
        }
        return scores(hash)
    }

    /// The calls of a compiled model so far.
    public static func calls(of compiled: URL) -> [Call] { log.withLock { $0[compiled.path] ?? [] } }

    private static let log = Mutex<[String: [Call]]>([:])

    var type: MLMultiArrayDataType { float32 ? .float32 : .float16 }
    var cacheShape: [Int] { [2 * slots, kvHeads, context, headWidth] }

    func cache() -> MLMultiArray {
        let plane = context * headWidth
        let strides = [kvHeads * plane, plane, headWidth, 1]
        let array = MLMultiArray(shape: cacheShape, dataType: type, strides: strides)
        array.zero()
        return array
    }

    func run(
        _ name: String, units: String, compiled: URL, inputs: any MLFeatureProvider, state: MLMultiArray?
    ) throws -> [String: MLFeatureValue] {
        guard let function = functions[name] else { throw StubError(reason: "no function \(name)") }
        let tokens = function.tokens
        var names: Set = ["input_ids", "position"]
        if tokens > 1 { names.insert("last_index") }
        if hostCache { names.insert("kv_cache") }
        guard inputs.featureNames == names else { throw StubError(reason: "\(name) takes \(names.sorted())") }
        func array(_ key: String, _ shape: [Int], _ type: MLMultiArrayDataType) throws -> MLMultiArray {
            guard let array = inputs.featureValue(for: key)?.multiArrayValue,
                array.shape.map(\.intValue) == shape, array.dataType == type
            else { throw StubError(reason: "\(key) must have the shape \(shape)") }
            return array
        }
        let ids = try array("input_ids", [1, tokens], .int32)
        let start = try array("position", [1], .int32).integer(0)
        let last = tokens > 1 ? try array("last_index", [1], .int32).integer(0) : 0
        guard let cache = hostCache ? try array("kv_cache", cacheShape, type) : state else {
            throw StubError(reason: "\(name) needs a state")
        }
        guard 0..<tokens ~= last, start >= 0 else { throw StubError(reason: "last_index must be a row") }
        let before = Self.log.withLock { log in
            log[compiled.path, default: []].append(Call(name, start, last))
            return log[compiled.path, default: []].filter { $0.function == name }.count
        }
        let fails = fails[name] == before - 1

        var hash = UInt64(function.depth)
        if start == 0 && !cache.isZero { hash ^= 1 << 30 }  // a new text begins with zeros
        for position in 0..<min(start, context) {
            for (row, head, k) in places(function) {
                Self.mix(&hash, cache.number(row, head, position, k).bitPattern)
            }
        }
        // As `slice_update` does it: rows that pass the end are written before it.
        let place = max(0, min(start, context - tokens))
        let rows = made([2 * function.slots, kvHeads, tokens, headWidth])
        for token in 0..<tokens {
            let id = ids.integer(0, token)
            guard 0..<vocabulary ~= id else { throw StubError(reason: "no id \(id)") }
            for (row, head, k) in places(function) {
                let number = value(id, start + token, row, head, k)
                rows.set(number, row, head, token, k)
                if !hostCache { cache.set(fails ? -number : number, row, head, fails ? token : place + token, k) }
                if token <= last { Self.mix(&hash, number.bitPattern) }
            }
        }
        if fails { throw StubError(reason: "\(name) was planned to fail") }
        if wrong.contains(units) || wrong.contains(name) { hash ^= 1 << 20 }
        let logits = made([1, 1, vocabulary])
        for (id, score) in scores(hash).enumerated() { logits.set(score, 0, 0, id) }
        var outputs = ["logits": MLFeatureValue(multiArray: logits)]
        if hostCache { outputs["kv_rows"] = MLFeatureValue(multiArray: rows) }
        return outputs
    }

    private func places(_ function: Function) -> [(Int, Int, Int)] {
        (0..<2 * function.slots).flatMap { row in
            (0..<kvHeads).flatMap { head in (0..<headWidth).map { (row, head, $0) } }
        }
    }

    /// What a token leaves in the cache, from 1 to 2,000, which half precision holds exactly.
    private func value(_ id: Int, _ position: Int, _ row: Int, _ head: Int, _ k: Int) -> Float {
        var hash: UInt64 = 1
        for part in [id, position, row, head, k] { Self.mix(&hash, UInt32(truncatingIfNeeded: part)) }
        return Float(1 + hash % 2000)
    }

    private func scores(_ hash: UInt64) -> [Float] {
        (0..<vocabulary).map { id in
            var hash = hash
            Self.mix(&hash, UInt32(id))
            return Float((hash >> 40) % 2039) / 64
        }
    }

    private func made(_ shape: [Int]) -> MLMultiArray {
        let spare = strides == .apart ? 24 : 0
        var steps = [Int](repeating: 1, count: shape.count)
        for axis in shape.indices.dropLast().reversed() {
            steps[axis] = steps[axis + 1] * shape[axis + 1] + (axis == shape.count - 2 ? spare : 0)
        }
        if strides == .apart { steps = steps.map { 2 * $0 } }
        let told = strides == .zero ? steps.map { _ in 0 } : steps
        return MLMultiArray(shape: shape, dataType: type, strides: steps, told: told)
    }

    private static func mix(_ hash: inout UInt64, _ part: UInt32) {  // a round of SplitMix64
        hash = (hash ^ UInt64(part)) &+ 0x9e37_79b9_7f4a_7c15
        hash = (hash ^ hash >> 30) &* 0xbf58_476d_1ce4_e5b9
        hash = (hash ^ hash >> 27) &* 0x94d0_49bb_1331_11eb
        hash ^= hash >> 31
    }
}
