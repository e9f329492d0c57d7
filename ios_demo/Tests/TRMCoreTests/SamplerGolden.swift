import Foundation
import Testing

@testable import TRMCore

/// The folder of vectors that Python writes and both read; `TRM_VECTORS` names another.
let goldenFolder: URL = {
    if let folder = ProcessInfo.processInfo.environment["TRM_VECTORS"] { return URL(fileURLWithPath: folder) }
    let root = (0..<4).reduce(URL(fileURLWithPath: #filePath)) { url, _ in url.deletingLastPathComponent() }
    return root.appendingPathComponent("tests/golden")
}()

func golden<Vectors: Decodable>(
    _ name: String, _ kind: Vectors.Type, _ keys: JSONDecoder.KeyDecodingStrategy = .useDefaultKeys
) throws -> Vectors {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = keys
    return try decoder.decode(kind, from: Data(contentsOf: goldenFolder.appendingPathComponent(name)))
}

/// `sampler.json`.
struct SamplerVectors: Decodable {
    struct Number: Decodable {
        let seed: Wide
        let step: Wide
        let valueBits: Bits
    }
    struct Point: Decodable {
        let xBits: Bits
        let valueBits: Bits
    }
    let splitmix64: [Number]
    let uniform: [Number]
    let expDet: [Point]
    let cases: [SamplerCase]
    let refused: [Refusal]
}

/// `sampler_options.json`.
struct OptionVectors: Decodable {
    struct Completing: Decodable {
        let pieces: [Hex]
        let bans: [Hex]
        let tail: Hex
        let ids: [Int32]
    }
    let cases: [SamplerCase]
    let edges: [SamplerCase]
    let refused: [Refusal]
    let completing: [Completing]
}

struct Refusal: Decodable {
    let reason: String
    let logits: Floats
    let temperature: Real?
    let banned: [Int32]?
}

struct SamplerCase: Decodable, CustomTestStringConvertible {
    let name: String
    let logits: Floats
    let temperature: Real
    let topK: Int
    let topP: Real
    let minP: Real
    let repetitionPenalty: Real
    let typicalP: Real?
    let presencePenalty: Real?
    let frequencyPenalty: Real?
    let bias: [Pair]?
    let banned: [Int32]?
    let seed: Wide
    let history: [Int32]
    let steps: [Int]
    let tokens: [Int32]

    struct Pair: Decodable {
        let id: Int32
        let amount: Real

        init(from decoder: any Decoder) throws {
            var values = try decoder.unkeyedContainer()
            id = try values.decode(Int32.self)
            amount = try values.decode(Real.self)
        }
    }

    var testDescription: String { name }

    var settings: SamplingConfig {
        SamplingConfig(
            temperature: temperature.value, topK: topK, topP: topP.value, minP: minP.value,
            typicalP: typicalP?.value ?? 1, repetitionPenalty: repetitionPenalty.value,
            presencePenalty: presencePenalty?.value ?? 0, frequencyPenalty: frequencyPenalty?.value ?? 0,
            seed: seed.value)
    }

    /// The token that a sampler picks at each step.
    func found() throws -> [Int32] {
        let sampler = try Sampler(settings)
        let read = try History(vocabulary: logits.values.count, ids: history)
        let biases = Dictionary(uniqueKeysWithValues: (bias ?? []).map { ($0.id, $0.amount.value) })
        return try steps.map { step in
            try sampler.sample(
                logits: logits.values, step: step, history: read, bias: biases, banned: banned ?? [])
        }
    }
}

/// A text in a file that stands for something else.
protocol Written: Decodable {
    init?(_ text: String)
}

extension Written {
    init(from decoder: any Decoder) throws {
        let text = try decoder.singleValueContainer().decode(String.self)
        guard let made = Self(text) else {
            throw DecodingError.dataCorrupted(.init(codingPath: decoder.codingPath, debugDescription: text))
        }
        self = made
    }
}

/// A decimal 64-bit integer.
struct Wide: Written {
    let value: UInt64

    init?(_ text: String) {
        guard let value = UInt64(text) else { return nil }
        self.value = value
    }
}

/// Sixteen hexadecimal digits, of a `UInt64` or a `Double`.
struct Bits: Written {
    let value: UInt64
    var double: Double { Double(bitPattern: value) }

    init?(_ text: String) {
        guard text.utf8.count == 16, let value = UInt64(text, radix: 16) else { return nil }
        self.value = value
    }
}

/// A C99 hexadecimal float.
struct Real: Written {
    let value: Double

    init?(_ text: String) {
        guard text.contains("0x"), let value = Double(text) else { return nil }
        self.value = value
    }
}

/// Base64 of little-endian float32.
struct Floats: Written {
    let values: [Float]

    init?(_ text: String) {
        guard let data = Data(base64Encoded: text), data.count % 4 == 0 else { return nil }
        let bytes = [UInt8](data)
        values = stride(from: 0, to: bytes.count, by: 4).map { at in
            Float(bitPattern: (0..<4).reduce(0) { $0 | UInt32(bytes[at + $1]) << UInt32(8 * $1) })
        }
    }
}

/// Bytes, two hexadecimal digits each.
struct Hex: Written {
    let bytes: [UInt8]

    init?(_ text: String) {
        let digits = text.utf8.map { UInt8(ascii: "0")...UInt8(ascii: "9") ~= $0 ? $0 - 48 : $0 - 87 }
        guard digits.count % 2 == 0, digits.allSatisfy({ $0 < 16 }) else { return nil }
        bytes = stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
    }
}
