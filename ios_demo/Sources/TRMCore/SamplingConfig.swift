/// How the next token is picked. Temperature 0 takes the most likely token and draws nothing.
public struct SamplingConfig: Sendable, Codable, Equatable {
    /// Most that a bias or a penalty may be: e^100 decides any draw, and no sum of them overflows.
    static let largest = 100.0

    /// Divides the logits; 0 is greedy.
    public var temperature = 0.8
    /// Keep this many of the most likely tokens; 0 keeps all.
    public var topK = 40
    /// Keep the fewest tokens that hold this share of probability; 1 keeps all.
    public var topP = 1.0
    /// Keep tokens at least this likely relative to the likeliest; 0 keeps all.
    public var minP = 0.0
    /// Keep the tokens of most usual surprise that hold this share; 1 keeps all.
    public var typicalP = 1.0
    /// Above 1 makes tokens of the text so far, prompt included, less likely; 1 is off.
    public var repetitionPenalty = 1.0
    /// Taken from the logit of each token of the text so far, once.
    public var presencePenalty = 0.0
    /// Taken from it for every time it came, in the prompt too.
    public var frequencyPenalty = 0.0
    /// Fixes every draw.
    public var seed: UInt64 = 0

    public init(
        temperature: Double = 0.8, topK: Int = 40, topP: Double = 1, minP: Double = 0, typicalP: Double = 1,
        repetitionPenalty: Double = 1, presencePenalty: Double = 0, frequencyPenalty: Double = 0, seed: UInt64 = 0
    ) {
        self.temperature = temperature
        self.topK = topK
        self.topP = topP
        self.minP = minP
        self.typicalP = typicalP
        self.repetitionPenalty = repetitionPenalty
        self.presencePenalty = presencePenalty
        self.frequencyPenalty = frequencyPenalty
        self.seed = seed
    }

    /// Keys that are missing keep their defaults.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.values(CodingKeys.self)
        temperature = try values.value(.temperature, or: temperature)
        topK = try values.value(.topK, or: topK)
        topP = try values.value(.topP, or: topP)
        minP = try values.value(.minP, or: minP)
        typicalP = try values.value(.typicalP, or: typicalP)
        repetitionPenalty = try values.value(.repetitionPenalty, or: repetitionPenalty)
        presencePenalty = try values.value(.presencePenalty, or: presencePenalty)
        frequencyPenalty = try values.value(.frequencyPenalty, or: frequencyPenalty)
        seed = try values.value(.seed, or: seed)
        try check()
    }

    /// Throws the first setting that is out of its range.
    public func check() throws {
        func require(_ holds: Bool, _ key: CodingKeys, _ must: String, _ found: some Any) throws {
            guard !holds else { return }
            throw GenerationError.setting(name: key.rawValue, must: must, found: "\(found)")
        }
        let finite = temperature < .infinity
        try require(0 <= temperature && finite, .temperature, "be finite and at least 0", temperature)
        try require(topK >= 0, .topK, "be at least 0, which keeps all tokens", topK)
        let share = "be above 0 and at most 1, which keeps all tokens"
        try require(0 < topP && topP <= 1, .topP, share, topP)
        try require(0 <= minP && minP <= 1, .minP, "lie between 0, which keeps all tokens, and 1", minP)
        try require(0 < typicalP && typicalP <= 1, .typicalP, share, typicalP)
        for (key, penalty) in [(CodingKeys.presencePenalty, presencePenalty), (.frequencyPenalty, frequencyPenalty)] {
            try require(abs(penalty) <= Self.largest, key, "lie between -100 and 100; 0 is off", penalty)
        }
        let holds = 0 < repetitionPenalty && repetitionPenalty < .infinity
        try require(holds, .repetitionPenalty, "be finite and above 0; 1 is off", repetitionPenalty)
    }

    /// Whether the text so far has a say.
    public var remembers: Bool { repetitionPenalty != 1 || presencePenalty != 0 || frequencyPenalty != 0 }

    enum CodingKeys: String, CodingKey {
        case temperature, seed
        case topK = "top_k"
        case topP = "top_p"
        case minP = "min_p"
        case typicalP = "typical_p"
        case repetitionPenalty = "repetition_penalty"
        case presencePenalty = "presence_penalty"
        case frequencyPenalty = "frequency_penalty"
    }
}
