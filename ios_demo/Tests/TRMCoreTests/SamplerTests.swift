import Foundation
import Testing

@testable import TRMCore

struct SamplerTests {
    static let sampler = Result { try golden("sampler.json", SamplerVectors.self, .convertFromSnakeCase) }
    static let options = Result { try golden("sampler_options.json", OptionVectors.self, .convertFromSnakeCase) }
    static let cases = (try? sampler.get().cases + options.get().cases + options.get().edges) ?? []

    @Test func vectorsAreAllRead() throws {
        #expect(try Self.sampler.get().cases.count == 48)
        #expect(try Self.options.get().cases.count == 40)
        #expect(try Self.options.get().edges.count >= 27)
    }

    @Test(arguments: cases)
    func goldenCaseGivesItsTokens(_ vector: SamplerCase) throws {
        #expect(try vector.found() == vector.tokens)
    }

    @Test func numbersAndDrawsHaveTheSameBits() throws {
        for vector in try Self.sampler.get().splitmix64 {
            #expect(SplitMix64.number(seed: vector.seed.value, step: vector.step.value) == vector.valueBits.value)
        }
        for vector in try Self.sampler.get().uniform {
            let draw = SplitMix64.uniform(seed: vector.seed.value, step: vector.step.value)
            #expect(draw.bitPattern == vector.valueBits.value)
        }
    }

    @Test func exponentialsHaveTheSameBits() throws {
        let points = try Self.sampler.get().expDet
        #expect(points.count > 90)
        for point in points { #expect(exponential(point.xBits.double).bitPattern == point.valueBits.value) }
    }

    @Test func refusalsAreRefusedForTheirReason() throws {
        let refusals = try Self.sampler.get().refused + Self.options.get().refused
        #expect(Set(refusals.map(\.reason)) == ["nan", "infinite", "masked", "banned"])
        for refusal in refusals {
            let sampler = try Sampler(SamplingConfig(temperature: refusal.temperature?.value ?? 0.8))
            let error = #expect(throws: GenerationError.self) {
                try sampler.sample(logits: refusal.logits.values, step: 0, banned: refusal.banned ?? [])
            }
            switch (refusal.reason, error) {
            case ("nan", .score(1, let value)): #expect(value.isNaN)
            case ("infinite", .score(2, .infinity)): break
            case ("masked", .nothingAllowed(4, banned: 0)): break
            case ("banned", .nothingAllowed(_, let banned)): #expect(banned > 0)
            default: Issue.record("\(refusal.reason) gave \(String(describing: error))")
            }
        }
    }

    @Test func firstOfAWholeVocabularyAreThoseOfSorting() {
        for size in [1, 2, 3, 64, 1000] {
            for shape in 0..<5 {
                let values = (0..<size).map { place -> Double in
                    let draw = SplitMix64.uniform(seed: UInt64(shape), step: UInt64(place))
                    switch shape {
                    case 0: return draw
                    case 1: return (draw * 8).rounded(.down)  // many equals
                    case 2: return Double(place)
                    case 3: return -Double(place)
                    default: return draw < 0.9 ? -.infinity : draw < 0.95 ? 0.0 : -0.0
                    }
                }
                let order = values.indices.sorted { (-values[$0], $0) < (-values[$1], $1) }.map { Int32($0) }
                for count in [0, 1, 2, 5, 40, size - 1, size, size + 1] where count >= 0 {
                    let expected = count == 0 ? order[...] : order.prefix(count)
                    #expect(rank(values, count).map(\.id) == Array(expected), "\(size) \(shape) \(count)")
                }
            }
        }
    }

    @Test func stepsBeforeTheFirstAndIdsOutsideAreRefused() throws {
        let sampler = try Sampler(SamplingConfig(repetitionPenalty: 2))
        let logits: [Float] = [1, 2, 3]
        #expect(throws: GenerationError.setting(name: "step", must: "be at least 0", found: "-1")) {
            try sampler.sample(logits: logits, step: -1)
        }
        for id: Int32 in [-1, 3] {
            #expect(throws: GenerationError.token(id: Int(id), vocabulary: 3, place: "biases")) {
                try sampler.sample(logits: logits, step: 0, bias: [id: 1])
            }
            #expect(throws: GenerationError.token(id: Int(id), vocabulary: 3, place: "bans")) {
                try sampler.sample(logits: logits, step: 0, banned: [0, id])
            }
            #expect(throws: GenerationError.token(id: Int(id), vocabulary: 3, place: "history")) {
                try History(vocabulary: 3, ids: [0, id])
            }
        }
        #expect(throws: GenerationError.vocabularies(expected: 3, found: 4, place: "history")) {
            try sampler.sample(logits: logits, step: 0, history: History(vocabulary: 4))
        }
        #expect(throws: GenerationError.vocabularies(expected: 1, found: 0, place: "scores")) {
            try sampler.sample(logits: [], step: 0)
        }
    }
}

struct SamplingConfigTests {
    @Test(arguments: [
        ("temperature", SamplingConfig(temperature: -0.1)), ("temperature", SamplingConfig(temperature: .infinity)),
        ("temperature", SamplingConfig(temperature: .nan)), ("top_k", SamplingConfig(topK: -1)),
        ("top_p", SamplingConfig(topP: 0)), ("top_p", SamplingConfig(topP: 1.1)),
        ("top_p", SamplingConfig(topP: .nan)),
        ("min_p", SamplingConfig(minP: -0.1)), ("min_p", SamplingConfig(minP: 1.1)),
        ("min_p", SamplingConfig(minP: .nan)), ("typical_p", SamplingConfig(typicalP: 0)),
        ("typical_p", SamplingConfig(typicalP: 1.1)), ("typical_p", SamplingConfig(typicalP: .nan)),
        ("repetition_penalty", SamplingConfig(repetitionPenalty: 0)),
        ("repetition_penalty", SamplingConfig(repetitionPenalty: .infinity)),
        ("repetition_penalty", SamplingConfig(repetitionPenalty: .nan)),
        ("presence_penalty", SamplingConfig(presencePenalty: 100.1)),
        ("presence_penalty", SamplingConfig(presencePenalty: .nan)),
        ("frequency_penalty", SamplingConfig(frequencyPenalty: -101)),
    ])
    func settingsOutOfRangeAreRefusedByName(_ name: String, _ settings: SamplingConfig) {
        let error = #expect(throws: GenerationError.self) { try settings.check() }
        #expect(error?.errorDescription?.hasPrefix("\(name) must ") == true)
        #expect(throws: GenerationError.self) { try Sampler(settings) }
    }

    @Test func settingsAtTheEndsOfTheirRangesAreTaken() throws {
        let tiny = Double.leastNonzeroMagnitude
        try SamplingConfig(temperature: 0, topK: 0, minP: 0, repetitionPenalty: tiny).check()
        try SamplingConfig(temperature: 1e308, topK: .max, topP: tiny, minP: 1, typicalP: tiny, seed: .max).check()
        try SamplingConfig(presencePenalty: 100, frequencyPenalty: -100).check()
    }

    @Test func keysAreThoseOfPythonAndAbsentOnesKeepTheirDefaults() throws {
        let json = """
            {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.7, "repetition_penalty": 1.1,
             "presence_penalty": 0.2, "frequency_penalty": 0.3, "seed": 18446744073709551615}
            """
        let settings = try JSONDecoder().decode(SamplingConfig.self, from: Data(json.utf8))
        let expected = SamplingConfig(
            temperature: 0.5, topK: 3, topP: 0.9, minP: 0.01, typicalP: 0.7, repetitionPenalty: 1.1,
            presencePenalty: 0.2, frequencyPenalty: 0.3, seed: .max)
        #expect(settings == expected)
        #expect(try JSONDecoder().decode(SamplingConfig.self, from: JSONEncoder().encode(expected)) == expected)
        #expect(try JSONDecoder().decode(SamplingConfig.self, from: Data("{}".utf8)) == SamplingConfig())
    }

    @Test func unknownKeysAndValuesOutOfRangeAreRefused() {
        #expect(throws: GenerationError.unknownKey(name: "topK")) {
            try JSONDecoder().decode(SamplingConfig.self, from: Data(#"{"topK": 3}"#.utf8))
        }
        #expect(throws: GenerationError.self) {
            try JSONDecoder().decode(SamplingConfig.self, from: Data(#"{"top_p": 0}"#.utf8))
        }
        #expect(throws: DecodingError.self) {
            try JSONDecoder().decode(SamplingConfig.self, from: Data(#"{"seed": -1}"#.utf8))
        }
        #expect(throws: DecodingError.self) {
            try JSONDecoder().decode(SamplingConfig.self, from: Data(#"{"top_k": null}"#.utf8))
        }
    }
}
