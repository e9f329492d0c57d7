import Foundation
import TRMCore
import Testing

@testable import TRMReference

@Suite struct ModelFolderTests {
    @Test(arguments: Golden.names) func aFolderTellsItsRevisionHashAndSizeAsPythonDoes(name: String) throws {
        let (record, folder) = (try Golden.record(name), try ModelFolder(contentsOf: Golden.folder(name)))
        #expect(folder.revision == record.revision)
        #expect(folder.parameters == record.parameters)
        #expect(try ModelFolder.fingerprint(of: Golden.folder(name)) == record.manifestSha256)
        let facts = try FileManager.default.attributesOfItem(
            atPath: Golden.folder(name).appendingPathComponent("model.safetensors").path)
        #expect(folder.weightsBytes == facts[.size] as? Int)
    }

    /// What the sentence of the refusal begins with.
    private func refused(_ name: String, _ sentence: String, damage: (Copy) throws -> Void) throws {
        let copy = try Copy(of: name)
        try damage(copy)
        let error = #expect(throws: ModelFolderError.self) { try ModelFolder(contentsOf: copy.folder) }
        let told = error?.localizedDescription ?? ""
        #expect(told.hasPrefix(sentence), "\(told)")
    }

    @Test(arguments: ["config.json", "tokenizer.model", "model.safetensors"]) func aMissingFileIsNamed(name: String)
        throws
    {
        try refused("rope", "There is no \(name); a model folder holds") {
            try FileManager.default.removeItem(at: $0.folder.appendingPathComponent(name))
        }
    }

    @Test func aFolderInThePlaceOfAFileIsNoFile() throws {
        try refused("rope", "There is no config.json") {
            let file = $0.folder.appendingPathComponent("config.json")
            try FileManager.default.removeItem(at: file)
            try FileManager.default.createDirectory(at: file, withIntermediateDirectories: false)
        }
    }

    @Test func aHugeConfigIsNotRead() throws {
        try refused("rope", "config.json must be at most 1048576 bytes.") {
            try Data(count: 1 << 20 + 1).write(to: $0.folder.appendingPathComponent("config.json"))
        }
    }

    @Test(arguments: [
        ("{", "", "config.json: it must be JSON, and is not at byte 0."),
        ("\"trm_mlx.model\"", "\"other\"", "config.json: it must have \"format\": \"trm_mlx.model\""),
        ("\"version\": 1", "\"version\": 2", "config.json: it has version 2, and this app reads 1"),
        ("\"version\": 1", "\"version\": true", "config.json: it has version true, and this app reads 1"),
        ("\"version\": 1,", "\"version\": 1, \"more\": 0,", "config.json: unknown key \"more\"; known are format,"),
        ("\"width\": 16", "\"breadth\": 16", "config.json: unknown key \"breadth\"; known are vocabulary, width,"),
        ("\"width\": 16", "\"width\": 16, \"width\": 16", "config.json: it must be JSON"),
        (
            "\"width\": 16", "\"width\": 16.0",
            "config.json: width must be a whole number from 1 to 1048576, got 16.0."
        ),
        (
            "\"width\": 16", "\"width\": true",
            "config.json: width must be a whole number from 1 to 1048576, got true."
        ),
        ("\"width\": 16", "\"width\": 18", "config.json: width must be a multiple of heads, and heads of kv_heads"),
        ("\"width\": 16", "\"width\": 20", "config.json: width (for rope, width / heads) must be even, got 20 and 4"),
        ("\"depth\": 3", "\"depth\": 65", "config.json: depth must be a whole number from 1 to 64, got 65."),
        ("\"rope\"", "\"ropes\"", "config.json: position must be one of \"rope\", \"alibi\", \"learned\""),
        ("\"qk_norm\": true", "\"qk_norm\": 1", "config.json: qk_norm must be true or false, got 1."),
        ("\"rope_base\": 100.0", "\"rope_base\": 1", "config.json: rope_base must be above 1, got 1.0."),
        ("\"dropout\": 0.0", "\"dropout\": 1", "config.json: dropout must be at least 0 and below 1, got 1.0."),
        ("\"context\": 32", "\"context\": \"\\u001b[2J\"", "config.json: context must be a whole number"),
    ]) func aConfigThatCannotBeIsRefused(old: String, new: String, sentence: String) throws {
        try refused("rope", sentence) { copy in
            if old == "{" {
                let file = copy.folder.appendingPathComponent("config.json")
                try Data("no JSON".utf8).write(to: file)
            } else {
                try copy.config(old, new)
            }
        }
    }

    @Test func aKeyThatIsNotThereHasItsUsualValue() throws {
        let copy = try Copy(of: "rope")
        try copy.config("\"pass_lora\": 0,", "")
        #expect(try ModelFolder(contentsOf: copy.folder).shape.passLora == 0)
    }

    @Test func aHaltingHeadIsReadAndChangesNoScores() throws {
        let (copy, ids) = (try Copy(of: "rope"), try Golden.record("rope").ids)
        try copy.config("\"pass_lora\": 0,", "\"pass_lora\": 0, \"halting\": true,")
        #expect(throws: ModelFolderError.self) { try ModelFolder(contentsOf: copy.folder) }
        try copy.add("halting.weight", count: 16)
        #expect(throws: ModelFolderError.self) { try ModelFolder(contentsOf: copy.folder) }
        try copy.add("halting.bias", count: 1)
        #expect(try ModelFolder(contentsOf: copy.folder).shape.halting)
        let headed = try ReferenceModel(contentsOf: copy.folder)
        let plain = try ReferenceModel(contentsOf: Golden.folder("rope"))
        #expect(try headed.append(ids) == plain.append(ids))
    }

    @Test(arguments: [
        ("\"bits\": 6", "\"bits\": 5", "config.json: grids.core.0"),
        ("\"method\": \"affine\"", "\"method\": \"other\"", "config.json: grids."),
        ("\"group\": 12", "\"group\": 13", "config.json: group must divide the 96 inputs of a matrix, got 13."),
        ("\"core.1.attention.out.weight\"", "\"core.2.attention.out.weight\"", "config.json: grids names"),
        ("\"core.1.attention.out.weight\"", "\"core.01.attention.out.weight\"", "config.json: grids names"),
        (
            "\"core.1.attention.out.weight\"", "\"final_norm.weight\"",
            "config.json: grids names \"final_norm.weight\""
        ),
    ]) func aGridThatCannotBeIsRefused(old: String, new: String, sentence: String) throws {
        try refused("affine", sentence) { try $0.config(old, new) }
    }

    @Test func aModelTooLargeForItsFileIsRefusedBeforeItIsMade() throws {
        try refused("none", "model.safetensors: it must hold ") {
            try $0.config("\"core\": 1", "\"core\": 1048576")
            try $0.config("\"pass_lora\": 2", "\"pass_lora\": 1048576")
            try $0.config("\"width\": 18", "\"width\": 1048576")
            try $0.config("\"depth\": 2", "\"depth\": 64")
        }
    }

    @Test func filesOfAnotherModelAreRefused() throws {
        for name in ["config.json", "tokenizer.model"] {
            try refused("rope", "\(name) is not the one that model.safetensors was saved with; restore both") {
                let file = $0.folder.appendingPathComponent(name)
                try (Data(contentsOf: file) + Data(" ".utf8)).write(to: file)
            }
        }
    }

    @Test(arguments: [0, 7, 8, 100, -1]) func aFileCutShortIsRefused(bytes: Int) throws {
        try refused("rope", "model.safetensors: it must ") {
            let whole = try Data(contentsOf: $0.weights)
            try whole.prefix(bytes < 0 ? whole.count - 1 : bytes).write(to: $0.weights)
        }
    }

    @Test func aHeaderLargerThanTheFileOrThanAnyIsRefused() throws {
        let lengths: [[UInt8]] = [
            [255, 255, 255, 255, 255, 255, 255, 255], [0, 0, 0, 0, 0, 0, 0, 128], [1, 0, 64, 0, 0, 0, 0, 0],
        ]
        for length in lengths {
            try refused("rope", "model.safetensors: it must be a safetensors file, got") {
                let rest = try Data(contentsOf: $0.weights).dropFirst(8)
                try (Data(length) + rest + Data(count: 1 << 22)).write(to: $0.weights)
            }
        }
    }

    @Test func dataThatChangedAreNoticed() throws {
        try refused("rope", "model.safetensors: it is damaged: its data are not those it was saved with") {
            var bytes = try Data(contentsOf: $0.weights)
            bytes[bytes.count - 1] ^= 1
            try bytes.write(to: $0.weights)
        }
    }

    @Test(arguments: [
        (
            "\"dtype\": \"F16\"", "\"dtype\": \"F64\"",
            "model.safetensors: dtype must be F32, F16, BF16 or U32, got \"F64\"."
        ),
        ("\"shape\": [16]", "\"shape\": [17]", "model.safetensors: it must be a safetensors file saved by trm_mlx"),
        ("\"shape\": [16]", "\"shape\": [-16]", "model.safetensors: it must be a safetensors file saved by trm_mlx"),
        ("\"shape\": [16]", "\"shape\": [1e1]", "model.safetensors: it must be a safetensors file saved by trm_mlx"),
        ("\"shape\": [16]", "\"shape\": [4, 4]", "model.safetensors: "),
        (
            "\"shape\": [320, 16]", "\"shape\": [4611686018427387904, 16]",
            "model.safetensors: it must be a safetensors"
        ),
        (
            "\"shape\": [320, 16]", "\"shape\": [16, 320]",
            "model.safetensors: embedding.weight must be of shape [320, 16]"
        ),
        ("\"injection\"", "\"injections\"", "model.safetensors: tensor injection is missing."),
        ("\"injection\"", "\"a\\u001b\"", "model.safetensors: tensor \"a\\u{1B}\" is unknown to a model of this"),
        ("\"injection\"", "\"recall\"", "model.safetensors: it must be a safetensors file saved by trm_mlx"),
        ("\"__metadata__\"", "\"metadata\"", "model.safetensors: it must be a safetensors file saved by trm_mlx"),
        ("\"sha256\"", "\"sha-256\"", "model.safetensors: it is damaged"),
        ("\"config\"", "\"configs\"", "config.json is not the one that model.safetensors was saved with"),
    ]) func aHeaderThatCannotBeIsRefused(old: String, new: String, sentence: String) throws {
        try refused("rope", sentence) { try $0.header(old, new) }
    }

    @Test func tensorsThatOverlapOrLeaveGapsAreRefused() throws {
        let sentence = "model.safetensors: its tensors must follow each other without gaps; it is damaged."
        let start = try Copy(of: "rope").start(of: "injection")
        for moved in [start - 32, start + 32] {
            try refused("rope", sentence) {
                try $0.header("[\(start), \(start + 32)]", "[\(moved), \(moved + 32)]")
            }
        }
        try refused("rope", "model.safetensors: it must hold ") {
            let (header, data) = try $0.parts()
            try $0.write(header, data + [0, 0])
        }
    }

    @Test func wholeNumbersInThePlaceOfWeightsAreRefused() throws {
        try refused("alibi", "model.safetensors: final_norm.weight must be of floating point numbers, got U32.") {
            let start = try $0.start(of: "final_norm.weight")
            let ends = "\"shape\": [16], \"data_offsets\": [\(start), \(start + 64)]"
            try $0.header("\"dtype\": \"F32\", \(ends)", "\"dtype\": \"U32\", \(ends)")
        }
        try refused("affine", "model.safetensors: embedding.weight must be of dtype U32") {
            let start = try $0.start(of: "embedding.weight")
            let ends = "\"shape\": [320, 8], \"data_offsets\": [\(start), \(start + 10_240)]"
            try $0.header("\"dtype\": \"U32\", \(ends)", "\"dtype\": \"F32\", \(ends)")
        }
    }

    @Test func numbersThatAreNoneAreRefused() throws {
        for (high, name) in [(UInt8(0x7e), "rope"), (0x7c, "rope"), (0x7f, "alibi"), (0x7f, "learned")] {
            try refused(
                name, "model.safetensors: \"final_norm.weight\" must hold finite numbers, got NaN or infinity."
            ) {
                let start = try $0.start(of: "final_norm.weight")
                let size = name == "alibi" ? 4 : 2
                try $0.data {
                    $0.replaceSubrange(start + size - 2..<start + size, with: [name == "rope" ? 0 : 0xc0, high])
                }
            }
        }
    }

    @Test(arguments: [
        (UInt16(0x0000), "must be above 0"), (0x9000, "must be above 0"), (0x7bff, "must be above 0 and at most"),
        (0x1001, "must be of at most 4 significant bits"),
    ]) func scalesThatRoundingDoesNotMakeAreRefused(bits: UInt16, words: String) throws {
        try refused("affine", "model.safetensors: embedding.scales \(words)") {
            let start = try $0.start(of: "embedding.scales")
            try $0.data { $0.replaceSubrange(start..<start + 2, with: [UInt8(bits & 255), UInt8(bits >> 8)]) }
        }
    }

    @Test func everyFloat16IsRead() {
        #expect(float(half: 0x3c00) == 1 && float(half: 0xc000) == -2 && float(half: 0x7bff) == 65504)
        #expect(float(half: 0x0001) == 0x1p-24 && float(half: 0x03ff) == 0x3ffp-24 && float(half: 0x0400) == 0x1p-14)
        #expect(float(half: 0x8000).sign == .minus && float(half: 0x7c00) == .infinity && float(half: 0x7e00).isNaN)
    }
}
