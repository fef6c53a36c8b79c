// What the host is and how fast: ISA, CPU, I/O, memory, drive; and CRC-32C.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "base/bandwidth.h"
#include "base/cpu.h"
#include "base/crc32c.h"
#include "base/error.h"
#include "bind/bind.h"
#include "io/drive_rate.h"
#include "io/file.h"
#include "io/reader.h"
#include "kernels/kernels.h"

namespace {

using namespace hotset;

std::vector<kernels::IsaInfo> isa_list() {
  size_t count;
  const kernels::IsaInfo* list = kernels::isa_list(&count);
  return {list, list + count};
}

std::string select_isa(const std::optional<std::string>& name) {
  return kernels::select(name ? name->c_str() : nullptr).isa;
}

nb::dict cpu_info() {
  const CpuFeatures& f = cpu_features();
  const std::pair<const char*, bool> features[] = {{"avx2", f.avx2},
                                                   {"fma", f.fma},
                                                   {"f16c", f.f16c},
                                                   {"avx512f", f.avx512f},
                                                   {"avx512bw", f.avx512bw},
                                                   {"avx512vl", f.avx512vl},
                                                   {"avx512dq", f.avx512dq},
                                                   {"avx512vnni", f.avx512vnni},
                                                   {"avx512bf16", f.avx512bf16},
                                                   {"avx_vnni", f.avx_vnni},
                                                   {"crc32c", f.crc32c},
                                                   {"neon", f.neon},
                                                   {"dotprod", f.dotprod},
                                                   {"i8mm", f.i8mm},
                                                   {"sve", f.sve}};
  nb::list names;
  for (const auto& [name, present] : features)
    if (present) names.append(name);
  nb::dict d;
  d["model"] = cpu_model();
  d["features"] = names;
  d["allowed_cpus"] = allowed_cpus();
  d["l1d_bytes"] = cache_bytes(1);
  d["l2_bytes"] = cache_bytes(2);
  d["l3_bytes"] = cache_bytes(3);
  return d;
}

nb::dict io_info() {
  nb::dict d;
  d["io_uring_compiled"] = io::io_uring_compiled();
  d["io_uring_works"] = io::io_uring_works();
  return d;
}

void check_seconds(double seconds) {
  if (!(seconds > 0 && seconds <= 3600))
    throw InvalidArgument("seconds must be above 0 and at most 3600, got " + std::to_string(seconds));
}

double measure_memory(size_t threads, size_t megabytes, double seconds) {
  check_seconds(seconds);
  if (megabytes < 1 || megabytes > size_t{1} << 24)
    throw InvalidArgument("megabytes must be between 1 and 16777216, got " + std::to_string(megabytes));
  nb::gil_scoped_release release;
  return memory_bandwidth(threads, megabytes << 20, seconds);
}

nb::dict as_dict(const io::DriveRate& rate) {
  nb::dict d;
  d["bytes_per_s"] = rate.bytes_per_s;
  d["reads_per_s"] = rate.reads_per_s;
  d["cpu_us_per_read"] = rate.cpu_us_per_read;
  d["direct"] = rate.direct ? 1.0 : 0.0;
  d["work_share"] = rate.work_share;
  return d;
}

nb::dict drive_read(const std::string& path, size_t block_bytes, size_t depth, const std::string& backend,
                    bool random, double seconds, size_t memory_bytes) {
  check_seconds(seconds);
  io::DriveRate rate;
  {
    nb::gil_scoped_release release;
    rate = io::measure_drive(path, block_bytes, depth, backend, random, seconds, memory_bytes);
  }
  return as_dict(rate);
}

nb::dict busy_drive_read(const std::string& path, size_t block_bytes, size_t depth,
                         const std::string& backend, size_t threads, double seconds) {
  check_seconds(seconds);
  io::DriveRate rate;
  {
    nb::gil_scoped_release release;
    rate = io::measure_busy_drive(path, block_bytes, depth, backend, threads, seconds);
  }
  return as_dict(rate);
}

size_t direct_alignment(const std::string& path) { return io::File(path, true).alignment(); }

// Anything that has Python's buffer protocol and is contiguous, read-only or not.
struct Bytes {
  Py_buffer view;
  explicit Bytes(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_SIMPLE) == 0) return;
    PyErr_Clear();
    throw InvalidArgument(std::string("crc32c of a ") + nb::inst_name(object).c_str() +
                          ", wanted bytes or a contiguous array or memoryview");
  }
  ~Bytes() { PyBuffer_Release(&view); }
  Bytes(const Bytes&) = delete;
};

uint32_t checksum(nb::handle data, uint32_t crc) {
  const Bytes bytes(data);
  nb::gil_scoped_release release;
  return crc32c(bytes.view.buf, static_cast<size_t>(bytes.view.len), crc);
}

}  // namespace

void bind_host(nb::module_& m) {
  nb::class_<kernels::IsaInfo>(m, "IsaInfo")
      .def_ro("name", &kernels::IsaInfo::name)
      .def_ro("description", &kernels::IsaInfo::description)
      .def_ro("compiled", &kernels::IsaInfo::compiled)
      .def_ro("supported", &kernels::IsaInfo::supported);
  m.def("isa_list", &isa_list);
  m.def("select_isa", &select_isa, nb::arg("name") = nb::none());
  m.def("cpu_info", &cpu_info);
  m.def("io_info", &io_info);
  m.def("memory_bandwidth", &measure_memory, nb::arg("threads"), nb::arg("megabytes"), nb::arg("seconds"));
  m.def("drive_read", &drive_read, nb::arg("path"), nb::arg("block_bytes"), nb::arg("depth"),
        nb::arg("backend"), nb::arg("random"), nb::arg("seconds"), nb::arg("memory_bytes") = 0);
  m.def("busy_drive_read", &busy_drive_read, nb::arg("path"), nb::arg("block_bytes"), nb::arg("depth"),
        nb::arg("backend"), nb::arg("threads"), nb::arg("seconds"));
  m.def("direct_alignment", &direct_alignment, nb::arg("path"));
  m.def("crc32c", &checksum, nb::arg("data"), nb::arg("crc") = 0);
}
