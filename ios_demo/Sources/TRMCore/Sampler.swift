/// Picks the next token from logits, the same one on every machine and in every language.
///
/// Same bits of logits, settings, seed and step: the same token, bit for bit, as the specification in
/// `tests/golden/make_sampler.py`. Three rules make it so, and a change that breaks one changes texts:
///
/// - doubles, and only + - * / floor and compare, each a separate IEEE operation (Swift fuses none by itself);
/// - candidates ordered by (logit descending, id ascending), and every sum taken in that order, left to right;
///   typical sampling alone has an order of its own;
/// - one draw a token, from a counter and not from a state, so a text resumes at any step.
///
/// The steps, in their order; one that is off leaves every bit as it was:
///
/// 1. NaN and +inf are refused.          2. bias is added.             3. banned ids get -inf.
/// 4. repetition penalty.                5. presence and frequency.    6. temperature 0: the first maximum, no draw.
/// 7. order, and the first top_k of it.  8. weight = e^((l - l_0) / temperature), l_0 the first logit in order.
/// 9. typical_p.                         10. top_p.                    11. min_p, against the first weight left.
/// 12. the draw.
public struct Sampler: Sendable {
    public let settings: SamplingConfig

    public init(_ settings: SamplingConfig) throws {
        try settings.check()
        self.settings = settings
    }

    /// The next token.
    ///
    /// - Parameters:
    ///   - logits: one for each id; -inf forbids a token.
    ///   - step: index of this token in its text, which picks the draw; at least 0.
    ///   - history: the text so far, prompt included; read only if `settings.remembers`.
    ///   - bias: what to add to the logit of an id.
    ///   - banned: ids that must not be taken.
    /// - Returns: an id. Greedy with every token forbidden by -inf gives 0, as the specification does.
    public func sample(
        logits: [Float], step: Int, history: History? = nil, bias: [Int32: Double] = [:], banned: [Int32] = []
    ) throws -> Int32 {
        guard step >= 0 else {
            throw GenerationError.setting(name: "step", must: "be at least 0", found: "\(step)")
        }
        guard !logits.isEmpty else { throw GenerationError.vocabularies(expected: 1, found: 0, place: "scores") }
        var values = logits.map { Double($0) }
        if let wrong = values.firstIndex(where: { !($0 < .infinity) }) {  // NaN is below nothing
            throw GenerationError.score(id: wrong, value: values[wrong])
        }
        try steer(&values, bias, banned)
        if settings.remembers, let history { try history.penalize(&values, settings) }
        if settings.temperature == 0 { return Int32(first(values)) }
        return try draw(values, SplitMix64.uniform(seed: settings.seed, step: UInt64(step)))
    }

    /// Add each bias to the logit of its id, then give banned ids -inf, in place.
    private func steer(_ values: inout [Double], _ bias: [Int32: Double], _ banned: [Int32]) throws {
        func check(_ id: Int32, _ place: String) throws {
            guard values.indices.contains(Int(id)) else {
                throw GenerationError.token(id: Int(id), vocabulary: values.count, place: place)
            }
        }
        for (id, amount) in bias {
            try check(id, "biases")
            values[Int(id)] += amount
        }
        for id in banned {
            try check(id, "bans")
            values[Int(id)] = -.infinity
        }
        guard banned.isEmpty || values.contains(where: { $0 > -.infinity }) else {
            throw GenerationError.nothingAllowed(vocabulary: values.count, banned: Set(banned).count)
        }
    }

    /// The place of the first maximum.
    private func first(_ values: [Double]) -> Int {
        var best = 0
        for place in values.indices where values[place] > values[best] { best = place }
        return best
    }

    /// The token at which the running probability first passes chance, from 0 to below 1.
    private func draw(_ values: [Double], _ chance: Double) throws -> Int32 {
        var order = rank(values, settings.topK)
        let peak = order[0].logit
        guard peak > -.infinity else { throw GenerationError.nothingAllowed(vocabulary: values.count, banned: 0) }
        let steps = order.map { ($0.logit - peak) / settings.temperature }
        var weights = steps.map(exponential)
        if settings.typicalP < 1 {
            let places = typical(steps, weights, settings.typicalP)
            order = places.map { order[$0] }
            weights = places.map { weights[$0] }
        }
        var kept = weights.count
        if settings.topP < 1 { kept = count(of: weights, holding: settings.topP) }
        if settings.minP > 0 {
            let least = settings.minP * weights[0]
            kept = weights[..<kept].dropFirst().firstIndex { $0 < least } ?? kept
        }
        let target = chance * weights[..<kept].reduce(0, +)
        var running = 0.0
        for place in 0..<kept {
            running += weights[place]
            if running > target { return order[place].id }
        }
        return order[kept - 1].id
    }
}

/// e to the x with the same bits everywhere, within one unit in the last place.
///
/// - Parameter x: at most 0; at or below -700 and NaN give 0.
func exponential(_ x: Double) -> Double {
    guard x > -700 else { return 0 }
    let k = (x * 1.4426950408889634 + 0.5).rounded(.down)  // log2 e
    // The leading bits of ln 2, whose product with any k used here is exact, and what is left of it.
    let r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10
    var total = taylor[13]
    for power in stride(from: 12, through: 0, by: -1) { total = total * r + taylor[power] }
    return total * Double(bitPattern: UInt64(1023 + Int(k)) << 52)  // 2^k: exact, as neither is subnormal
}

/// Of exp around 0.
private let taylor: [Double] = [
    1, 1, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362_880, 1 / 3_628_800, 1 / 39_916_800,
    1 / 479_001_600, 1 / 6_227_020_800,
]

/// How many of the first weights it takes to hold a share of all; at least one.
private func count(of weights: [Double], holding share: Double) -> Int {
    let limit = share * weights.reduce(0, +)
    var running = 0.0
    for (place, weight) in weights.enumerated() {
        running += weight
        if running >= limit { return place + 1 }
    }
    return weights.count
}

/// Ascending places of the fewest candidates, of information nearest to the mean information, that hold a share.
///
/// With x = `steps` and probabilities p proportional to e^x, information is c - x and its mean, the entropy,
/// c - sum(p x), with one and the same c: their distance needs no logarithm. Of equal distances the earlier
/// place comes first; a weight of 0 is infinitely far.
///
/// - Parameters:
///   - steps: scaled logits, descending.
///   - weights: e to the steps.
/// - Returns: at least one place; all of them if the weights are all 0.
///
/// Source: locally typical sampling, arXiv 2202.00666, section 4, over the candidates that top_k left.
private func typical(_ steps: [Double], _ weights: [Double], _ share: Double) -> [Int] {
    let places = Array(weights.indices)
    let total = weights.reduce(0, +)
    guard total > 0 else { return places }
    let mean = places.reduce(0.0) { weights[$1] > 0 ? $0 + weights[$1] * steps[$1] : $0 } / total
    let distances = places.map { weights[$0] > 0 ? abs(steps[$0] - mean) : .infinity }
    let nearest = places.sorted { (distances[$0], $0) < (distances[$1], $1) }
    return nearest.prefix(count(of: nearest.map { weights[$0] }, holding: share)).sorted()
}
