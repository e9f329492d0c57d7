/// What must hold of a manifest besides its form; the rules and their limits are those of `convert/manifest.py`.
extension Manifest {
    static let largest = 1 << 20  // of a size; with the next one, what keeps products in 64 bits
    static let mostCached = 1 << 31  // numbers
    static let mostCounted = 1 << 40  // parameters, or bytes of a file

    func check() throws(ManifestError) {
        try checkSizes()
        try checkFunctions()
        try checkIds()
        try checkSampling()
        try checkFiles()
    }

    private func checkSizes() throws(ManifestError) {
        let sizes = [
            ("vocabulary", vocabulary), ("context", context), ("chunk", chunk), ("slots", slots),
            ("kv_heads", kvHeads), ("head_width", headWidth),
        ]
        for (key, size) in sizes { try check(key, size, in: 1...Self.largest) }
        try check("window", window, in: 0...Self.largest)
        var cached = 2
        for size in [slots, kvHeads, context, headWidth] {  // each step stays below 2^51
            cached *= size
            try check("cache numbers", cached, in: 1...Self.mostCached)
        }
        try check("stored_parameters", storedParameters, in: 1...Self.mostCounted)
        try check("effective_parameters", effectiveParameters, in: 1...Self.mostCounted)
        guard context > 2 else { throw .outOfRange("context", value: context, least: 3, most: Self.largest) }
        try check("chunk", chunk, in: 2...context - 1)
    }

    private func checkFunctions() throws(ManifestError) {
        let ascend = zip(depths, depths.dropFirst()).allSatisfy { $0 < $1 }
        guard let first = functions.first, let last = functions.last, ascend else {
            throw .inconsistent("functions must have ascending depths, got \(depths)")
        }
        try check("depth", first.depth, in: 1...Self.largest)
        try check("depth", last.depth, in: 1...Self.largest)
        let names = functions.flatMap { [$0.decode, $0.prefill] }
        guard Set(names).count == names.count, names.allSatisfy(Self.isFunctionName) else {
            throw .inconsistent("functions must have a name each, of letters, digits and _, got \(names)")
        }
        let used = functions.map(\.slots)
        guard zip(used, used.dropFirst()).allSatisfy({ $0 < $1 }), first.slots > 0, last.slots == slots else {
            throw .inconsistent("functions must use more slots the deeper, and at last \(slots), got \(used)")
        }
    }

    private func checkIds() throws(ManifestError) {
        let ids = tokens.all
        for id in ids { try check("tokens", id, in: 0...vocabulary - 1) }
        guard Set(ids).count == ids.count else { throw .inconsistent("tokens must be different ids, got \(ids)") }
        guard pair(depth: selfTest.depth) != nil else {
            throw .inconsistent("self_test must be of an exported depth, got \(selfTest.depth)")
        }
        try check("self_test steps", selfTest.steps.count, in: 0...context)
        for step in selfTest.steps {
            for id in [step.id] + step.top { try check("self_test", id, in: 0...vocabulary - 1) }
            guard !step.top.isEmpty, Set(step.top).count == step.top.count else {
                throw .inconsistent("self_test must name different likeliest ids, got \(step.top)")
            }
        }
    }

    private func checkSampling() throws(ManifestError) {
        let probable = sampling.topP > 0 && sampling.topP <= 1 && sampling.minP >= 0 && sampling.minP <= 1
        guard sampling.temperature >= 0, sampling.topK >= 0, probable, sampling.repetitionPenalty > 0 else {
            throw .inconsistent("sampling must be what a sampler takes, got \(sampling)")
        }
    }

    private func checkFiles() throws(ManifestError) {
        guard Self.isName(name), package == "\(name).mlpackage" else {
            throw .inconsistent("package must be the name, of letters and digits, and .mlpackage, got \(package)")
        }
        for file in files {
            guard Self.isInside(file.path) else { throw .badPath(file.path) }
            try check("bytes of \(file.path)", file.bytes, in: 0...Self.mostCounted)
            let digits = file.sha256.utf8
            guard digits.count == 64, digits.allSatisfy({ 0x30...0x39 ~= $0 || 0x61...0x66 ~= $0 }) else {
                throw .inconsistent("\(file.path) must have a sha256 of 64 digits, got \(file.sha256)")
            }
        }
        let paths = files.map { $0.path.lowercased() }  // one file, on a disk that does not tell case
        guard Set(paths).count == paths.count else { throw .inconsistent("files must have a path each") }
    }

    private func check(_ key: String, _ value: Int, in range: ClosedRange<Int>) throws(ManifestError) {
        guard range.contains(value) else {
            throw .outOfRange(key, value: value, least: range.lowerBound, most: range.upperBound)
        }
    }

    /// Printable ASCII, no backslash: readers and disks spell the rest in many ways.
    private static func isInside(_ path: String) -> Bool {
        let plain = path.utf8.allSatisfy { 0x20...0x7e ~= $0 && $0 != UInt8(ascii: "\\") }
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        return plain && !parts.contains { ["", ".", ".."].contains($0) } && path != fileName
    }

    private static func isName(_ name: String) -> Bool {
        (1...64).contains(name.utf8.count) && name.utf8.allSatisfy(isLetterOrDigit)
            && name.utf8.first.map(isDigit) == false
    }

    private static func isFunctionName(_ name: String) -> Bool {
        name.utf8.allSatisfy { isLetterOrDigit($0) || $0 == UInt8(ascii: "_") }
            && name.utf8.first.map(isDigit) == false
    }

    private static func isDigit(_ byte: UInt8) -> Bool { 0x30...0x39 ~= byte }

    private static func isLetterOrDigit(_ byte: UInt8) -> Bool {
        isDigit(byte) || 0x41...0x5a ~= byte || 0x61...0x7a ~= byte
    }
}
