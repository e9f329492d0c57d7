#if COREML_STUB
    import CoreMLStub
    import Foundation
    import Testing

    @testable import TRMCore
    @testable import TRMCoreML

    /// The mistakes that an adapter can make, each of which the texts of the adapter's tests must show.
    enum Bug: CaseIterable, Sendable {
        case none, positionAfterPadding, firstRow, trustedStrides, ownState, pastTheEnd, lostCall, otherDepth
        case rowsOfPadding, rowsAtStart, staleState
    }

    /// A second, plain adapter, written with a mistake.
    private struct Driver {
        let rig: Rig
        let bug: Bug
        let state: MLState
        let cache: MLMultiArray
        var position = 0

        init(_ rig: Rig, _ bug: Bug) throws {
            (self.rig, self.bug) = (rig, bug)
            state = try Self.model(rig, "decode").makeState()
            cache = try Self.array(rig.manifest.cacheShape, rig.program.float32 ? .float32 : .float16)
            cache.withUnsafeMutableBytes { bytes, _ in _ = bytes.initializeMemory(as: UInt8.self, repeating: 0) }
        }

        static func model(_ rig: Rig, _ name: String) throws -> MLModel {
            let configuration = MLModelConfiguration()
            configuration.functionName = name
            return try MLModel(contentsOf: rig.compiled, configuration: configuration)
        }

        static func array(_ shape: [Int], _ type: MLMultiArrayDataType) throws -> MLMultiArray {
            try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: type)
        }

        static func whole(_ numbers: [Int32], _ shape: [Int]) throws -> MLFeatureValue {
            let made = try array(shape, .int32)
            made.withUnsafeMutableBytes { bytes, _ in bytes.copyBytes(from: numbers.flatMap { Self.bytes($0) }) }
            return MLFeatureValue(multiArray: made)
        }

        static func bytes(_ number: Int32) -> [UInt8] {
            (0..<4).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) }
        }

        mutating func append(_ tokens: [Int32]) throws -> [Float] {
            var (left, scores) = (tokens[...], [Float]())
            while !left.isEmpty {
                let fits = position + Rig.chunk <= Rig.context || bug == .pastTheEnd
                let part = left.prefix(fits ? Rig.chunk : 1)
                left = left.dropFirst(part.count)
                scores = try call(Array(part))
                position += bug == .positionAfterPadding && part.count > 1 ? Rig.chunk : part.count
                position = min(position, Rig.context - 1)
            }
            return scores
        }

        func call(_ part: [Int32]) throws -> [Float] {
            let chunked = part.count > 1
            let name = chunked ? (bug == .otherDepth ? "prefill_r1" : "prefill") : "decode"
            let model = try Self.model(rig, name)
            let width = chunked ? Rig.chunk : 1
            let padded = part + [Int32](repeating: 0, count: width - part.count)
            var inputs = ["input_ids": try Self.whole(padded, [1, width])]
            inputs["position"] = try Self.whole([Int32(position)], [1])
            if chunked { inputs["last_index"] = try Self.whole([bug == .firstRow ? 0 : Int32(part.count - 1)], [1]) }
            if rig.program.hostCache { inputs["kv_cache"] = MLFeatureValue(multiArray: cache) }
            let provider = try MLDictionaryFeatureProvider(dictionary: inputs)
            let outputs: any MLFeatureProvider
            do {
                let used = bug == .ownState && chunked ? model.makeState() : state
                outputs =
                    try rig.program.hostCache
                    ? model.prediction(from: provider) : model.prediction(from: provider, using: used)
            } catch  where bug == .lostCall { return [] }
            try keep(part.count, of: outputs)
            let logits = try #require(outputs.featureValue(for: "logits")?.multiArrayValue)
            let format: NumberFormat = rig.program.float32 ? .float32 : .float16
            return try logits.withUnsafeBytes { bytes in
                let strides = bug == .trustedStrides ? [1, 1, 1] : logits.strides.map(\.intValue)
                return format.row(
                    bytes, try #require(ArrayLayout(shape: [1, 1, 50], strides: strides, room: 1 << 20)))
            }
        }

        func keep(_ count: Int, of outputs: any MLFeatureProvider) throws {
            guard let rows = outputs.featureValue(for: "kv_rows")?.multiArrayValue else { return }
            let format: NumberFormat = rig.program.float32 ? .float32 : .float16
            try rows.withUnsafeBytes { bytes in
                let (shape, strides) = (rows.shape.map(\.intValue), rows.strides.map(\.intValue))
                let source = try #require(ArrayLayout(shape: shape, strides: strides, room: 1 << 20))
                try cache.withUnsafeMutableBytes { target, strides in
                    let layout = try #require(
                        ArrayLayout(shape: rig.manifest.cacheShape, strides: strides, room: 1 << 20))
                    let place = bug == .rowsAtStart ? 0 : position
                    let kept = bug == .rowsOfPadding ? 1 : count
                    copyRows(kept, from: bytes, source, to: place, of: target, layout, format: format)
                }
            }
        }
    }

    @Suite struct PlantedBugTests {
        /// Parts of texts whose scores come out wrong, or that end in an error.
        private func wrong(_ bug: Bug, _ change: (inout HashProgram) -> Void) throws -> Int {
            let rig = try Rig(change)
            var (count, driver) = (0, try Driver(rig, bug))
            for parts in cuts {
                if bug == .staleState { driver.position = 0 } else { driver = try Driver(rig, bug) }
                var read = 0
                for part in parts {
                    let scores = try? driver.append(Array(Rig.ids[read..<read + part]))
                    read += part
                    if scores != rig.program.scores(after: Array(Rig.ids[..<read]), depth: 2) { count += 1 }
                }
            }
            return count
        }

        @Test(arguments: kinds.indices) func theDriverItselfIsRight(kind: Int) throws {
            guard !kinds[kind].name.contains("zero") else { return }
            #expect(try wrong(.none, kinds[kind].change) == 0)
        }

        @Test(arguments: Bug.allCases.filter { $0 != .none }) func aMistakeShows(bug: Bug) throws {
            let count = try wrong(bug) { program in
                switch bug {
                case .trustedStrides: program.strides = .apart
                case .lostCall: program.fails = ["prefill": 1]
                case .rowsOfPadding, .rowsAtStart: program.hostCache = true
                default: break
                }
            }
            #expect(count > 0)
        }
    }
#endif
