import Foundation

#if canImport(Darwin)
    @preconcurrency import Darwin  // before macOS 15.4 its SDK does not say that mach_task_self_ is never written
#endif

/// The memory that this process takes.
public enum MemoryProbe {
    /// On Apple's systems the footprint now, by which an app is judged there; on Linux the most so far. 0: not known.
    public static func bytes() -> Int {
        #if canImport(Darwin)
            var facts = task_vm_info_data_t()
            let size = MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size
            var count = mach_msg_type_number_t(size)
            let status = withUnsafeMutablePointer(to: &facts) { pointer in
                pointer.withMemoryRebound(to: integer_t.self, capacity: size) {
                    task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
                }
            }
            return status == KERN_SUCCESS ? Int(clamping: facts.phys_footprint) : 0
        #else
            let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
            return peak(status: status)
        #endif
    }

    /// What Linux's `/proc/self/status` says of the most memory held at once.
    static func peak(status: String) -> Int {
        let words = status.split(separator: "\n").first { $0.hasPrefix("VmHWM:") }?.split(
            whereSeparator: \.isWhitespace)
        guard let words, words.count == 3, words[2] == "kB", let size = Int(words[1]) else { return 0 }
        let (bytes, overflow) = size.multipliedReportingOverflow(by: 1024)
        return overflow ? 0 : bytes
    }
}
