#if COREML_STUB
    import CoreMLStub
    import Foundation
    import TRMCore

    @testable import TRMCoreML
    @testable import TRMDemoModel

    /// An export folder as `convert` would write it, with a package of the stand-in and a real tokenizer.
    struct ExportFolder {
        let folder: URL
        private let desk: Desk

        init(_ desk: Desk, name: String = "Tiny", _ change: (inout HashProgram) -> Void = { _ in }) throws {
            let chunk = 6
            var program = HashProgram(
                functions: [
                    "decode_r1": .init(depth: 1, tokens: 1, slots: 2),
                    "prefill_r1": .init(depth: 1, tokens: chunk, slots: 2),
                    "decode": .init(depth: 2, tokens: 1, slots: 3),
                    "prefill": .init(depth: 2, tokens: chunk, slots: 3),
                ], vocabulary: 320, context: 64, slots: 3, kvHeads: 1, headWidth: 1)
            change(&program)
            (self.desk, folder) = (desk, desk.root.appendingPathComponent("export-\(name)"))
            let tokenizer = try Data(contentsOf: Desk.rope.appendingPathComponent("tokenizer.model"))
            let files: [String: Data] = [
                "\(name).mlpackage/Manifest.json": Data("{}".utf8),
                "\(name).mlpackage/Data/com.apple.CoreML/model.mlmodel": try JSONEncoder().encode(program),
                "tokenizer.model": tokenizer,
            ]
            for (path, content) in files {
                let place = folder.appendingPathComponent(path)
                try FileManager.default.createDirectory(
                    at: place.deletingLastPathComponent(), withIntermediateDirectories: true)
                try content.write(to: place)
            }
            let records = files.keys.sorted().map { path in
                let content = [UInt8](files[path] ?? Data())
                let hash = SHA256Hash.hexadecimal(of: content)
                return #"{"path": "\#(path)", "bytes": \#(content.count), "sha256": "\#(hash)"}"#
            }
            let ids: [Int32] = [1, 30, 31, 32]
            let steps = ids.indices.map { step in
                let scores = program.scores(after: Array(ids[...step]), depth: 2)
                let top = scores.indices.sorted { (-scores[$0], $0) < (-scores[$1], $1) }.prefix(5)
                return #"{"id": \#(ids[step]), "top": \#(Array(top))}"#
            }
            let tokens = try Tokenizer([UInt8](tokenizer))
            let manifest = """
                {"format": "trm.export", "version": 1, "name": "\(name)", "package": "\(name).mlpackage", "revision": "r",
                "stored_parameters": 4000000, "effective_parameters": 5000000, "weights": "8 bits", "compress": "none",
                "precision": "float16", "state": "model", "vocabulary": 320, "context": 64, "window": 0,
                "chunk": \(chunk), "slots": 3, "kv_heads": 1, "head_width": 1, "functions": [
                {"depth": 1, "decode": "decode_r1", "prefill": "prefill_r1", "slots": 2},
                {"depth": 2, "decode": "decode", "prefill": "prefill", "slots": 3}],
                "tokens": {"unknown": \(tokens.unknown), "bos": \(tokens.bos), "eos": \(tokens.eos), "pad": \(tokens.pad),
                "user": \(tokens.user), "assistant": \(tokens.assistant), "end": \(tokens.end)},
                "sampling": {"temperature": 0.7, "top_k": 40, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.1},
                "self_test": {"depth": 2, "steps": [\(steps.joined(separator: ", "))]},
                "files": [\(records.joined(separator: ", "))]}
                """
            try Data(manifest.utf8).write(to: folder.appendingPathComponent(Manifest.fileName))
        }

        func imported() throws -> StoredModel { try desk.library.add(folder) }
    }
#endif
