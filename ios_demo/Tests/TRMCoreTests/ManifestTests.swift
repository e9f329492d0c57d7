import Foundation
import Testing

@testable import TRMCore

/// `tests/golden/manifest.json`, which Python wrote and reads too.
struct GoldenManifests: Decodable {
    struct Damage: Decodable, Sendable, CustomTestStringConvertible {
        let base: Int
        let kind, old, new: String
        var testDescription: String { "\(old) -> \(new)" }
    }

    let valid: [String]
    let damaged: [Damage]

    static let shared: GoldenManifests? = {
        let file = goldenFolder.appendingPathComponent("manifest.json")
        return (try? Data(contentsOf: file)).flatMap { try? JSONDecoder().decode(Self.self, from: $0) }
    }()
}

private let golden = GoldenManifests.shared

extension ManifestError {
    /// The reason as the golden file names it.
    fileprivate var kind: String {
        switch self {
        case .notJSON, .tooLarge: "json"
        case .notAnExport: "format"
        case .otherVersion: "version"
        case .unknownKey: "unknown"
        case .missingKey: "missing"
        case .wrongType: "type"
        case .outOfRange, .inconsistent, .badPath: "value"
        }
    }
}

@Suite struct ManifestTests {
    @Test func goldenManifestsAreThere() throws {
        #expect(golden?.valid.count == 3)
        #expect((golden?.damaged.count ?? 0) > 80)
    }

    @Test(arguments: 0..<3) func aValidManifestIsRead(number: Int) throws {
        _ = try Manifest(Array(try #require(golden?.valid[number]).utf8))
    }

    @Test(arguments: golden?.damaged ?? [])
    func aDamagedManifestIsRefusedForItsReason(damage: GoldenManifests.Damage) throws {
        let base = try #require(golden?.valid[damage.base])
        let text = base.replacingOccurrences(of: damage.old, with: damage.new)
        #expect(Array(text.utf8) != Array(base.utf8))
        let error = #expect(throws: ManifestError.self) { _ = try Manifest(Array(text.utf8)) }
        #expect(error?.kind == damage.kind)
        let sentence = try #require(error?.errorDescription)
        #expect(sentence.hasSuffix(".") && !sentence.contains("\n"))
    }

    @Test func everyKeyHasItsPlace() throws {
        let made = try Manifest(Array(try #require(golden?.valid.first).utf8))
        #expect(made.name == "TinyStories4M" && made.package == "TinyStories4M.mlpackage")
        #expect(made.storedParameters == 4_003_712 && made.effectiveParameters == 5_184_640)
        #expect(made.weights == "8-bit affine" && made.compress == .none && made.revision.hasPrefix("4f4f"))
        #expect(made.precision == .float16 && made.state == .model)
        #expect(made.vocabulary == 4096 && made.context == 1024 && made.window == 512 && made.chunk == 64)
        #expect(made.cacheShape == [14, 2, 1024, 64])
        #expect(made.depths == [1, 2])
        #expect(made.pair(depth: 1) == .init(depth: 1, decode: "decode_r1", prefill: "prefill_r1", slots: 5))
        #expect(made.pair(depth: 3) == nil)
        #expect(made.tokens == .init(unknown: 0, bos: 1, eos: 2, pad: 3, user: 4, assistant: 5, end: 6))
        let sampling = Manifest.Sampling(temperature: 0.7, topK: 40, topP: 1, minP: 0, repetitionPenalty: 1.1)
        #expect(made.sampling == sampling)
        #expect(made.selfTest.depth == 2 && made.selfTest.steps[1].id == 4057)
        #expect(made.selfTest.steps[1].top == [4060, 4061, 4062, 4063, 4064])
        #expect(made.files.count == 5 && made.files[2].bytes == 617 && made.totalBytes == 4_966_820)
    }

    @Test func aKeyThatCameTwiceIsRefused() throws {
        let text = try #require(golden?.valid.first).replacingOccurrences(
            of: "\"chunk\": 64", with: "\"chunk\": 64, \"chunk\": 32")
        #expect(throws: ManifestError.self) { _ = try Manifest(Array(text.utf8)) }
    }

    @Test func aFileAboveTheLimitIsNotRead() throws {
        let bytes = [UInt8](repeating: 0x20, count: Manifest.mostBytes + 1)
        #expect(throws: ManifestError.tooLarge(bytes: bytes.count, most: Manifest.mostBytes)) {
            _ = try Manifest(bytes)
        }
    }

    @Test func noChangeOfOneByteTraps() throws {
        let text = Array(try #require(golden?.valid.first).utf8)
        var random = SystemRandomNumberGenerator()
        for _ in 0..<300 {
            var bytes = text
            let place = Int.random(in: 0..<bytes.count, using: &random)
            bytes[place] = UInt8.random(in: 0...255, using: &random)
            _ = try? Manifest(bytes)
            _ = try? Manifest(Array(bytes[..<place]))
        }
    }
}
