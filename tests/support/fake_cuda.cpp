#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::Stream;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return getDevice(); }
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Stream getStream(Device) const noexcept override { return stream(); }
  Stream getNewStream(Device, int) const override { return stream(); }
  Stream exchangeStream(Stream) const noexcept override { return stream(); }
  Stream stream() const { return Stream(Stream::DEFAULT, getDevice()); }
};

}  // namespace

extern "C" void pretend_cuda() {
  if (!c10::impl::hasDeviceGuardImpl(DeviceType::CUDA)) {
    c10::impl::registerDeviceGuard(DeviceType::CUDA, new Guard());
  }
}
