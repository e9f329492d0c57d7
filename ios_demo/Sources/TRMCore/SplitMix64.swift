/// Numbers drawn from a counter, the same ones on every machine and in every language.
///
/// Source: SplitMix64, Steele, Lea and Flood, OOPSLA 2014.
public enum SplitMix64 {
    /// Output `step`, from 0, of the generator of this seed; nothing is kept in between.
    public static func number(seed: UInt64, step: UInt64) -> UInt64 {
        var z = seed &+ (step &+ 1) &* 0x9E37_79B9_7F4A_7C15
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// The draw of one step: a multiple of 2^-53, at least 0 and below 1.
    public static func uniform(seed: UInt64, step: UInt64) -> Double {
        Double(number(seed: seed, step: step) >> 11) * 0x1p-53
    }
}
