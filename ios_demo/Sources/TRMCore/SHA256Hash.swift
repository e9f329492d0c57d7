import Foundation

/// SHA-256 of bytes that come in parts; the same code on every system, so that what is tested is what runs.
///
/// Source: FIPS 180-4, sections 4.1.2, 5 and 6.2.
public struct SHA256Hash: Sendable {
    private static let blockSize = 64

    private var state: [UInt32] = [
        0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C, 0x1F83_D9AB, 0x5BE0_CD19,
    ]
    private var waiting: [UInt8] = []  // less than a block
    private var schedule = [UInt32](repeating: 0, count: blockSize)
    private var size: UInt64 = 0

    public init() {}

    /// The hash of some bytes as 64 lowercase hexadecimal digits.
    public static func hexadecimal(of bytes: some ContiguousBytes) -> String {
        var hash = SHA256Hash()
        hash.update(bytes)
        return hash.hexadecimal()
    }

    /// Adds bytes after those before.
    public mutating func update(_ bytes: some ContiguousBytes) {
        bytes.withUnsafeBytes { add($0) }
    }

    /// The hash, 32 bytes, of all so far; more may follow.
    public func finish() -> [UInt8] {
        var last = self
        let bits = size &* 8
        let zeros = (2 * Self.blockSize - 9 - waiting.count) % Self.blockSize
        last.update([0x80] + [UInt8](repeating: 0, count: zeros) + Self.bigEndian(bits))
        return last.state.flatMap(Self.bigEndian)
    }

    /// The same as 64 lowercase hexadecimal digits.
    public func hexadecimal() -> String {
        let digits = Array("0123456789abcdef")
        return String(finish().flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] })
    }

    private static func bigEndian(_ value: some FixedWidthInteger) -> [UInt8] {
        withUnsafeBytes(of: value.bigEndian, Array.init)
    }

    private mutating func add(_ bytes: UnsafeRawBufferPointer) {
        size &+= UInt64(bytes.count)
        var place = 0
        if !waiting.isEmpty {
            place = min(Self.blockSize - waiting.count, bytes.count)
            waiting += bytes[..<place]
            guard waiting.count == Self.blockSize else { return }
            let block = waiting
            waiting.removeAll(keepingCapacity: true)
            block.withUnsafeBytes { compress($0, blocks: 1) }
        }
        let blocks = (bytes.count - place) / Self.blockSize
        let end = place + blocks * Self.blockSize
        compress(UnsafeRawBufferPointer(rebasing: bytes[place..<end]), blocks: blocks)
        waiting += bytes[end...]
    }

    private mutating func compress(_ bytes: UnsafeRawBufferPointer, blocks: Int) {
        schedule.withUnsafeMutableBufferPointer { w in
            Self.constants.withUnsafeBufferPointer { k in
                for block in 0..<blocks {
                    for t in 0..<16 {
                        let place = block * Self.blockSize + 4 * t
                        w[t] = UInt32(bigEndian: bytes.loadUnaligned(fromByteOffset: place, as: UInt32.self))
                    }
                    for t in 16..<64 {
                        let (x, y) = (w[t - 15], w[t - 2])
                        let s0 = turned(x, 7) ^ turned(x, 18) ^ x >> 3
                        let s1 = turned(y, 17) ^ turned(y, 19) ^ y >> 10
                        w[t] = w[t - 16] &+ s0 &+ w[t - 7] &+ s1
                    }
                    var (a, b, c, d) = (state[0], state[1], state[2], state[3])
                    var (e, f, g, h) = (state[4], state[5], state[6], state[7])
                    for t in 0..<64 {
                        let s1 = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)
                        let first = h &+ s1 &+ ((e & f) ^ (~e & g)) &+ k[t] &+ w[t]
                        let s0 = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)
                        let second = s0 &+ ((a & b) ^ (a & c) ^ (b & c))
                        (h, g, f, e) = (g, f, e, d &+ first)
                        (d, c, b, a) = (c, b, a, first &+ second)
                    }
                    for (place, value) in [a, b, c, d, e, f, g, h].enumerated() { state[place] &+= value }
                }
            }
        }
    }

    private static let constants: [UInt32] = [
        0x428A_2F98, 0x7137_4491, 0xB5C0_FBCF, 0xE9B5_DBA5, 0x3956_C25B, 0x59F1_11F1, 0x923F_82A4, 0xAB1C_5ED5,
        0xD807_AA98, 0x1283_5B01, 0x2431_85BE, 0x550C_7DC3, 0x72BE_5D74, 0x80DE_B1FE, 0x9BDC_06A7, 0xC19B_F174,
        0xE49B_69C1, 0xEFBE_4786, 0x0FC1_9DC6, 0x240C_A1CC, 0x2DE9_2C6F, 0x4A74_84AA, 0x5CB0_A9DC, 0x76F9_88DA,
        0x983E_5152, 0xA831_C66D, 0xB003_27C8, 0xBF59_7FC7, 0xC6E0_0BF3, 0xD5A7_9147, 0x06CA_6351, 0x1429_2967,
        0x27B7_0A85, 0x2E1B_2138, 0x4D2C_6DFC, 0x5338_0D13, 0x650A_7354, 0x766A_0ABB, 0x81C2_C92E, 0x9272_2C85,
        0xA2BF_E8A1, 0xA81A_664B, 0xC24B_8B70, 0xC76C_51A3, 0xD192_E819, 0xD699_0624, 0xF40E_3585, 0x106A_A070,
        0x19A4_C116, 0x1E37_6C08, 0x2748_774C, 0x34B0_BCB5, 0x391C_0CB3, 0x4ED8_AA4A, 0x5B9C_CA4F, 0x682E_6FF3,
        0x748F_82EE, 0x78A5_636F, 0x84C8_7814, 0x8CC7_0208, 0x90BE_FFFA, 0xA450_6CEB, 0xBEF9_A3F7, 0xC671_78F2,
    ]
}

private func turned(_ value: UInt32, _ bits: UInt32) -> UInt32 {
    value >> bits | value << (32 - bits)
}
