import SwiftUI
import TRMDemoModel

/// The model in use on all processors in turn, and its reports.
struct BenchView: View {
    @Environment(AppModel.self) private var app

    var body: some View {
        @Bindable var bench = app.bench
        NavigationStack {
            List {
                Section {
                    Toggle("Ten trials with pauses, for reports", isOn: $bench.isThorough)
                        .disabled(bench.isRunning)
                    if bench.isRunning {
                        Button {
                            bench.cancel()
                        } label: {
                            Label("Cancel", systemImage: "stop.fill")
                        }
                    } else {
                        Button {
                            app.measure()
                        } label: {
                            Label("Measure", systemImage: "stopwatch")
                        }
                        .disabled(!app.canMeasure)
                    }
                    HStack(spacing: 8) {
                        if bench.isRunning {
                            ProgressView().accessibilityHidden(true)
                        }
                        Text(verbatim: bench.status)
                            .accessibilityAddTraits(.updatesFrequently)
                            .accessibilityIdentifier("bench-status")
                    }
                } header: {
                    Text(verbatim: app.writing.model?.name ?? "No model")
                } footer: {
                    Text("Unplug the device, turn Low Power Mode off, and leave the app open while it measures.")
                }
                if !bench.rows.isEmpty {
                    Section("Results") {
                        ForEach(bench.rows) { row in
                            VStack(alignment: .leading, spacing: 4) {
                                Text(verbatim: row.name).font(.headline)
                                Text(verbatim: row.sentence)
                            }
                            .accessibilityElement(children: .combine)
                        }
                    }
                }
                if !bench.files.isEmpty {
                    Section {
                        ShareLink(items: bench.files) {
                            Label("Export the reports", systemImage: "square.and.arrow.up")
                        }
                    } footer: {
                        Text("One JSON file each. They name the kind of device, and not the device.")
                    }
                }
            }
            .navigationTitle("Benchmark")
        }
    }
}
