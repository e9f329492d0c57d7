#if COREML_STUB
    import CoreMLStub
    import Foundation
    import Testing

    @testable import TRMCore
    @testable import TRMCoreML

    /// A package of the stand-in, compiled and with its manifest: depths 1 and 2, chunk 6, and a context of 22, which is
    /// no multiple of it. In a folder that goes with it.
    final class Rig {
        static let chunk = 6
        static let context = 22

        let root = FileManager.default.temporaryDirectory.appendingPathComponent("trm-\(UUID().uuidString)")
        let program: HashProgram
        var manifest: Manifest
        var compiled: URL { root.appendingPathComponent("Tiny.mlmodelc") }

        init(_ change: (inout HashProgram) -> Void = { _ in }) throws {
            var program = HashProgram(
                functions: [
                    "decode_r1": .init(depth: 1, tokens: 1, slots: 2),
                    "prefill_r1": .init(depth: 1, tokens: Self.chunk, slots: 2),
                    "decode": .init(depth: 2, tokens: 1, slots: 3),
                    "prefill": .init(depth: 2, tokens: Self.chunk, slots: 3),
                ], vocabulary: 50, context: Self.context, slots: 3, kvHeads: 2, headWidth: 2)
            change(&program)
            self.program = program
            manifest = try Manifest(Array(Self.text(program).utf8))
            try FileManager.default.createDirectory(at: compiled, withIntermediateDirectories: true)
            try JSONEncoder().encode(program).write(to: compiled.appendingPathComponent("program"))
        }

        deinit { try? FileManager.default.removeItem(at: root) }

        func model(_ units: ComputeUnits = .cpuOnly) throws -> CoreMLStepModel {
            try CoreMLStepModel(compiled: compiled, manifest: manifest, units: units)
        }

        var calls: [HashProgram.Call] { HashProgram.calls(of: compiled) }

        static let ids: [Int32] = (0..<Int32(context)).map { ($0 &* 31 &+ 7) % 50 }

        /// The tokens after which the scores are largest, in order.
        static func top(_ scores: [Float]) -> [Int] {
            Array(scores.indices.sorted { (-scores[$0], $0) < (-scores[$1], $1) }.prefix(5))
        }

        static func text(_ program: HashProgram, files: String = "") -> String {
            let steps = (0..<16).map { step in
                let top = top(program.scores(after: Array(ids[...step]), depth: 2))
                return #"{"id": \#(ids[step]), "top": \#(top)}"#
            }
            return """
                {"format": "trm.export", "version": 1, "name": "Tiny", "package": "Tiny.mlpackage", "revision": "",
                "stored_parameters": 10, "effective_parameters": 20, "weights": "plain", "compress": "none",
                "precision": "\(program.float32 ? "float32" : "float16")",
                "state": "\(program.hostCache ? "host" : "model")",
                "vocabulary": 50, "context": \(context), "window": 0, "chunk": \(chunk), "slots": 3, "kv_heads": 2,
                "head_width": 2, "functions": [
                {"depth": 1, "decode": "decode_r1", "prefill": "prefill_r1", "slots": 2},
                {"depth": 2, "decode": "decode", "prefill": "prefill", "slots": 3}],
                "tokens": {"unknown": 0, "bos": 1, "eos": 2, "pad": 3, "user": 4, "assistant": 5, "end": 6},
                "sampling": {"temperature": 0.7, "top_k": 40, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.1},
                "self_test": {"depth": 2, "steps": [\(steps.joined(separator: ", "))]}, "files": [\(files)]}
                """
        }
    }

    /// Kinds of package, by name.
    let kinds: [(name: String, change: @Sendable (inout HashProgram) -> Void)] = [
        ("state", { _ in }),
        ("host", { $0.hostCache = true }),
        ("host in float32", { ($0.hostCache, $0.float32) = (true, true) }),
        ("state, strides apart", { $0.strides = .apart }),
        ("state, strides of zero", { $0.strides = .zero }),
        ("host, strides apart", { ($0.hostCache, $0.strides) = (true, .apart) }),
        ("host in float32, strides of zero", { ($0.hostCache, $0.float32, $0.strides) = (true, true, .zero) }),
    ]

    /// Lengths of the parts that a text comes in: whole chunks, padded ones, single tokens, and to the context's end.
    let cuts: [[Int]] = [
        [22], [1, 21], [5, 1, 1, 1], [6, 6, 6, 4], [7, 2, 8, 5], [2, 2, 2, 2], [13, 1, 8], [17, 5], [20, 2],
        [3, 6, 1, 9],
    ]
#endif
